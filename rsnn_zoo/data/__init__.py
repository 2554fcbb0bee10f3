"""Images: loading, checking and augmenting them."""

from rsnn_zoo._utils.lazy import lazy

__getattr__ = lazy(
    __name__,
    images="ImageData load_dataset",
    augment="Augment",
)
