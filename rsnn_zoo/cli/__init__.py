"""The command ``rsnn-zoo``."""

from rsnn_zoo._utils.lazy import lazy

__getattr__ = lazy(
    __name__,
    _arguments="device radii_of run_plugin",
    commands="main program",
)
