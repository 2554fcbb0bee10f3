"""Conversion of a ReLU network to a spiking one."""

from rsnn_zoo._utils.lazy import lazy

__getattr__ = lazy(
    __name__,
    conversion="calibrate convert relearn_statistics",
)
