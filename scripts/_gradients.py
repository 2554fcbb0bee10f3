"""What an attack's gradient pass takes, beside an earlier revision, as a table."""

from typing import Any


def table(results: dict[str, Any]) -> str:
    """The measurements as a Markdown table with a caption."""
    lines = ["| network | mode | before, s | now, s | speed-up |", "| --- | --- | --- | --- | --- |"]
    for case in results["cases"]:
        ratio = case["before"] / case["after"]
        lines.append(
            f"| {case['model']} | {case['mode']} | {case['before']:.3f} | {case['after']:.3f} | {ratio:.2f}x |"
        )
    caption = (
        f"Gradient pass with verdicts, of {results['images']} images in chunks of {results['chunk']}; medians of "
        f"{results['repeats']} alternating calls; before: revision {results['base']}; {results['cpu']}, "
        f"{results['threads']} threads; {results['date']}."
    )
    return "\n".join([*lines, "", caption])
