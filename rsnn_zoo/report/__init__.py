"""What an evaluation found, and how it is shown: reports, evidence, cards, figures."""

from rsnn_zoo._utils.lazy import lazy

__getattr__ = lazy(
    __name__,
    report="Report Run read_report wilson",
    evidence="check_evidence",
    card="model_card",
)
