"""What the benchmark measures, and its measurements as a table of ratios."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

TITLES = {"resnet20": "ResNet-20", "wrn16_4": "WRN-16-4", "vgg11": "VGG-11"}
PEERS = {"spikingjelly": "SpikingJelly", "snntorch": "snnTorch"}
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Case:
    """One thing to measure; ``timesteps`` is None for the ANN."""

    model: str
    timesteps: int | None
    quantity: str
    library: str
    precision: str


def ratios_table(results: dict[str, Any]) -> str:
    """The measurements as a Markdown table of ratios with a caption; "-" where a case is missing or failed.

    Args:
        results: What ``--output`` wrote.
    """
    outcomes = {tuple(case[field.name] for field in fields(Case)): case for case in results["cases"]}
    peers = [peer for peer in PEERS if any(case["library"] == peer for case in results["cases"])]

    def value(field: str, *case: object) -> float:
        return outcomes.get(case, {}).get(field) or math.nan

    def row(model: str, timesteps: int, quantity: str) -> Iterator[str]:
        yield from (TITLES[model], str(timesteps), quantity.replace("_", " "))
        ours, ann = (model, timesteps, quantity, "rsnn_zoo"), (model, None, quantity, "ann")
        for peer in peers:
            theirs = (model, timesteps, quantity, peer, "float32")
            yield pair(value("median_seconds", *theirs) / value("median_seconds", *ours, p) for p in PRECISIONS)
            yield pair(value("peak_bytes", *ours, p) / value("peak_bytes", *theirs) for p in PRECISIONS)
        times = ((value("median_seconds", *ours, p), value("median_seconds", *ann, p)) for p in PRECISIONS)
        yield pair(snn / (timesteps * once) for snn, once in times)

    def pair(ratios: Iterable[float]) -> str:
        return " / ".join("-" if math.isnan(ratio) else f"{ratio:.2f}" for ratio in ratios)

    columns = [f"{what} {PEERS[peer]}" for peer in peers for what in ("speed over", "memory over")]
    header = ["network", "T", "quantity", *columns, "time over T x ANN"]
    measured = dict.fromkeys(key[:3] for key in outcomes if key[1] is not None)
    lines = [header, ["---"] * len(header), *(row(*key) for key in measured)]
    batches = ", ".join(f"{TITLES[model]} {batch}" for model, batch in results["batch"].items())
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    caption = (
        "Each cell: ours in float32 / in bfloat16, over the peer in float32 or our ANN in the same precision. "
        f"Medians of {results['repeats']} calls; {results['cpu']}, {results['threads']} threads, glibc's allocator "
        f"{'tuned' if results['malloc_tuning'] else 'as it is'} for all; images a batch: {batches}; {versions}; "
        f"{results['date']}, revision {(results.get('git_revision') or 'unknown')[:7]}."
    )
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + ["", caption])
