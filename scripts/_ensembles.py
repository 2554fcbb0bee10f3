"""What the published ensemble and the adaptive one take, by ``benchmark_evaluation.py``, as a table."""

from typing import Any


def table(*files: dict[str, Any]) -> str:
    """Samples that stand, gradient steps and seconds by ensemble, a row a model, and of the plain way in sentences."""
    results = [(found, result) for found in files for result in found["results"]]
    names = [key for key in results[0][1] if key.startswith(("ensemble", "adaptive"))]
    header = ["model", "split", "n", "eps", "threads", *(f"`{name}`" for name in names)]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    plain = []
    for found, result in results:
        ways = [result[name] for name in names]
        cells = [f"`{result['model']}`", result["split"], result["n"], f"{result['eps']:g}/255", found["threads"]]
        cells += [f"{way['robust']} / {way['gradient_steps']:,} / {way['seconds']:.0f} s" for way in ways]
        lines.append(f"| {' | '.join(map(str, cells))} |")
        if "plain" in result:
            seconds = result["plain"]["seconds"]
            ratios = [f"{seconds / way['seconds']:.1f} (`{name}`)" for name, way in zip(names, ways, strict=True)]
            plain.append(
                f"The plain loop left {result['plain']['robust']} of {result['n']} standing for `{result['model']}` at "
                f"{result['eps']:g}/255, and took {seconds:.0f} s: {', '.join(ratios)} times as long."
            )
    for name in names[1:]:
        fewer = {
            key: sum(result[name][key] < result[names[0]][key] for _, result in results)
            for key in ("gradient_steps", "seconds", "robust")
        }
        plain.append(
            f"Of these {len(results)} rows, `{name}` took fewer steps than `{names[0]}` in {fewer['gradient_steps']}, "
            f"less time in {fewer['seconds']}, and left fewer images standing in {fewer['robust']}."
        )
    where = {f"{found['cpu']}, torch {found['versions']['torch']}, seed {result['seed']}" for found, result in results}
    revisions = sorted({found["git_revision"][:7] for found in files})
    plain.append(f"{'; '.join(sorted(where))}, revisions {', '.join(revisions)}.")
    return "\n".join([*lines, *(f"\n{line}" for line in plain)])
