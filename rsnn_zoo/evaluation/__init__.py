"""How robust a network is, per sample, and what would make the number untrue."""

from rsnn_zoo._utils.lazy import lazy

__getattr__ = lazy(
    __name__,
    evaluation="evaluate",
)
