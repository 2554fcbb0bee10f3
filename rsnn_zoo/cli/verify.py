"""``rsnn-zoo verify``: an entry against what it claims, or a file of adversarial examples against the network alone."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from rsnn_zoo.cli._arguments import MODEL, add_data, add_device, add_plugin, add_split, add_weights
from rsnn_zoo.cli._console import CommandFailed, Outcome

HELP = "check the files of an entry and recompute some of its verdicts, or check adversarial examples"
EXAMPLE = """\
rsnn-zoo verify NAME
  rsnn-zoo verify results/NAME.adversarial.safetensors --model NAME

Each example must lie in its ball and in [0, 1] and be misclassified by the model, whose weights must be those that the
file names; the same goes for the variants in 8 bits. With --data the clean images are compared with the data set too. A
false claim ends with an error. On another processor than the one that made the file, a spike can hinge on a rounding,
so 2 % of the examples may be classified differently; these are listed."""


def add_arguments(one: argparse.ArgumentParser) -> None:
    """Add what is of this command alone."""
    about = f"{MODEL}; with --model, a file of adversarial examples that evaluate --adversarial has written"
    one.add_argument("name", metavar="NAME_OR_FILE", help=about)
    one.add_argument("--model", help="the model that the examples in the file are to fell")
    about = "recompute N verdicts, drawn among all runs, radii and images (%(default)s)"
    one.add_argument("-n", "--images", type=int, default=64, metavar="N", help=about)
    one.add_argument("--eps", type=float, metavar="K", help="draw among the runs at K/255, or next to it, alone")
    one.add_argument("--seed", type=int, help="of the draw, to repeat one (a new one each time)")
    one.add_argument("--all", action="store_true", help="recompute every published verdict")
    about = "load other models that the evidence says its attacks transfer from"
    one.add_argument("--allow-fetch", action="store_true", help=about)
    one.add_argument("--allow-cost", action="store_true", help="recompute at any cost in memory and time")
    add_weights(one)
    add_split(one)
    add_data(one)
    add_device(one)
    add_plugin(one)


def run(args: argparse.Namespace) -> Outcome:
    """Verify what is named."""
    args.device = args.device or "cpu"  # where most evidence was made: another processor rounds otherwise
    if args.model:
        return _check_examples(args)
    if args.name.endswith(".safetensors"):
        raise ValueError(f"name the model that the examples in {args.name} are to fell: --model NAME")
    if args.weights or args.neuron or args.key:
        raise ValueError(
            "--weights, --neuron and --key go with a file of examples: an entry holds the weights that it claims"
        )
    from rsnn_zoo.verify_entry import verify

    checks = verify(
        args.name,
        None if args.all else args.images,
        eps=None if args.eps is None else args.eps / 255,
        seed=args.seed,
        source=args.data,
        root=args.data_root,
        download=args.download,
        device=args.device,
        progress=sys.stderr.isatty(),
        allow_fetch=args.allow_fetch,
        allow_cost=args.allow_cost,
    )
    holds = all(check.holds for check in checks)
    lines = [f"{'holds' if check.holds else 'FAILS'}  {check.what:<18} {check.said}" for check in checks]
    lines += [f"{args.name} {'is what it claims to be' if holds else 'is NOT what it claims to be'}"]
    return "\n".join(lines), {"name": args.name, "holds": holds, "checks": [*map(asdict, checks)]}, int(not holds)


def _check_examples(args: argparse.Namespace) -> Outcome:
    """Hold a file of adversarial examples against the network."""
    from rsnn_zoo.cli._weights import load_named
    from rsnn_zoo.evaluate_entry import data_of
    from rsnn_zoo.evaluation.examples import ROUNDED, verify_examples
    from rsnn_zoo.verify_entry import TOLERANCE

    model = load_named(args.model, args.weights, args.neuron, args.key).to(args.device)
    where = {"root": args.data_root, "download": args.download}
    data = data_of(model, args.data, args.split, **where) if args.data else None
    found = verify_examples(model, args.name, data, allow_cost=args.allow_cost)
    lines = []
    for fault, samples in found.faults.items():
        shown = ", ".join(map(str, samples[:10])) + (", ..." if len(samples) > 10 else "")
        lines.append(f"  {len(samples)} {fault}: samples {shown}")
    flipped = sum(len(samples) for fault, samples in found.faults.items() if fault in ROUNDED)
    if set(found.faults) - ROUNDED or flipped > TOLERANCE * found.n:
        raise CommandFailed("; ".join([f"{args.name} does NOT hold what it claims", *map(str.strip, lines)]))
    if flipped:
        lines.append("  these are few enough to be the roundings of another processor")
    which = "but for these, all" if flipped else "all"
    lines.append(
        f"{which} {found.n} examples fell {args.model} inside their balls, {found.n_uint8} of them in 8 bits too"
    )
    content = {"model": args.model, "n": found.n, "n_uint8": found.n_uint8, "faults": found.faults}
    return "\n".join(lines), content, 0
