"""What the widths of surrogate derivatives are in units of: the threshold, or the membrane's own unit."""

RELATIVE = "threshold"
"""Widths are multiples of the neuron's threshold, so nothing depends on the unit of its membrane: the default."""

ABSOLUTE = "absolute"
"""Widths are in the unit of the membrane, whatever the threshold: the published research code, and what evidence that
says nothing of units was made with."""

UNITS = (RELATIVE, ABSOLUTE)


def check_units(units: str) -> str:
    """Return the units if there are such.

    Raises:
        ValueError: If not.

    Example:
        >>> check_units("threshold")
        'threshold'
    """
    if units not in UNITS:
        raise ValueError(f"units of surrogate widths must be one of {', '.join(UNITS)}, got {units!r}")
    return units
