"""What timm is told of a network: its ``pretrained_cfg``, the same in a config, on a model and in timm's registry."""

from typing import Any


def pretrained_cfg(num_classes: int, in_chans: int, img_size: int, first_conv: str, classifier: str) -> dict[str, Any]:
    """Return timm's description of a network, whose normalisation is inside it: with mean 0 and std 1 for timm.

    With other values its transforms would normalise a second time.

    Args:
        num_classes: 0 for no classifier.
        in_chans: Channels of the images.
        img_size: Side of the images in pixels.
        first_conv: Name of the first convolution.
        classifier: Name of the classifier layer.

    Example:
        >>> pretrained_cfg(10, 3, 32, "conv1", "fc")["input_size"]
        (3, 32, 32)
    """
    return {
        "input_size": (in_chans, img_size, img_size),
        "num_classes": num_classes,
        "mean": (0.0,) * in_chans,
        "std": (1.0,) * in_chans,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "first_conv": first_conv,
        "classifier": classifier,
    }
