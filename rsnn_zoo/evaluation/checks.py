"""What the sanity flags of an evaluation look at: the model itself, and short attacks beside the protocols."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rsnn_zoo.attacks.base import Batch, project
from rsnn_zoo.attacks.queries import Square
from rsnn_zoo.attacks.signed import pgd
from rsnn_zoo.evaluation import flags
from rsnn_zoo.evaluation.engine import FELL, Engine
from rsnn_zoo.evaluation.protocols import Member, Plan
from rsnn_zoo.evaluation.transfer import Transfer
from rsnn_zoo.report.report import STANDS, Flag, Run

__all__ = ["model_flags", "run_flags"]

CLEAN_CHECKS, GRADIENT_CHECKS = 256, 32
"""Images at which the sanity flags look without attacking them: forward passes, and gradients under each mode."""
MOVED_BY = 3.0
"""How far a moved image is from the one it was, in radii: none of what PGD sees of the one is near the other."""
STEP_CHECKS, QUERY_CHECKS = (5, 20), 100
"""Steps of the two PGD that are compared, and queries of the Square attack that gradient attacks are compared with."""


def model_flags(engine: Engine, plans: Sequence[tuple[Plan, list[float]]], is_random: bool) -> list[Flag]:
    """What a look at the model shows."""
    samples, victim = engine.samples, engine.victim
    images, labels = samples.images[:CLEAN_CHECKS], samples.labels[:CLEAN_CHECKS]
    modes = [member.mode for plan, _ in plans for member in plan.members]
    logits = victim.logits(images)
    radius = max(radius for _, radii in plans for radius in radii)
    few = images[:GRADIENT_CHECKS].clone()
    odd = few[1::2]  # of perturbed images: a model may hide the gradients that attacks meet alone
    noise = torch.rand(odd.shape, generator=torch.Generator().manual_seed(0)).to(odd)
    few[1::2] = project(odd + radius * (2 * noise - 1), odd, radius)
    return [
        flags.ignores_input(logits),
        flags.normalisation_outside(victim, images, labels, samples.mean, samples.std),
        flags.zero_gradients(victim, few, labels[:GRADIENT_CHECKS], modes),
        flags.depends_on_batch(victim, images[: victim.chunk], is_random),
        flags.tied_logits(logits),
        flags.hidden_margins(victim, images, logits, is_random),
    ]


def run_flags(
    engine: Engine,
    plans: Sequence[Plan],
    source: nn.Module | None,
    runs: Sequence[Run],
    correct: Sequence[int],
    n: int,
    classes: int,
) -> list[Flag]:
    """What attacks on ``n`` samples show: from far away, with more steps, and without its gradients.

    Args:
        engine: Runs them.
        plans: Of the evaluation; the one of most members is looked at.
        source: The network that the model was converted from; None where it is not known.
        runs: What the evaluation found.
        correct: Positions of the samples that are classified correctly.
        n: Samples that are looked at.
        classes: K.
    """
    plan = max(plans, key=lambda plan: len(plan.members))
    index = engine.samples.index
    looked_at = _looked_at(index, n, engine.seed)
    probe = [position for position in correct if position in looked_at]
    radii = sorted(run.eps for run in runs if run.protocol == plan.name)

    def standing(what: str, eps: float, member: Member, positions: Sequence[int]) -> list[int]:
        engine.expect(len(positions), [member])
        found, _ = engine.attack(f"check {what}", eps, [member], positions)
        return [position for position in positions if found[index[position]] == STANDS]

    seen = len(looked_at)
    last = [run for run in runs if run.eps == radii[-1]]
    left = [position for position in probe if all(run.verdicts[position] == STANDS for run in last)]
    far, enough = probe, min(seen / classes, len(left))
    for number, member in enumerate(plan.members):
        if len(far) > enough:  # else neither flag can be raised
            member, _ = engine.learned(member, flags.FAR, correct)
            far = standing(f"far {number}", flags.FAR, member, far)
    middle = radii[len(radii) // 2]
    few, many = (standing(f"pgd{k}", middle, Member(pgd(k)), probe) for k in STEP_CHECKS)
    moved = _standing_moved(engine, middle, Member(pgd(STEP_CHECKS[1])), probe)
    without = left  # what needs no gradient of the model is compared with attacks that followed it
    if any(not attack.startswith(flags.GRADIENT_FREE) for run in last for attack, _ in run.members):
        without = standing("square", radii[-1], Member(Square(QUERY_CHECKS)), without)
        if source is not None:
            without = standing("transfer", radii[-1], Member(Transfer(source, pgd(STEP_CHECKS[1]), "ann")), without)

    def stands(standing: Sequence[int]) -> list[bool]:
        return [position in standing for position in looked_at]

    return [
        flags.knows_images([position in many for position in probe], moved),
        flags.above_chance(len(far), seen, classes),
        flags.gradient_free(runs, also=len(left) - len(without)),
        flags.more_eps(runs, also=[stands(left), stands(far)] if radii[-1] < flags.FAR else ()),
        flags.more_steps(runs, also=[stands(few), stands(many)]),
    ]


def _looked_at(index: Sequence[int], n: int, seed: int) -> list[int]:
    """Positions of ``n`` samples, drawn by their index: a model may know all but the first."""
    order = sorted(range(len(index)), key=index.__getitem__)
    chosen = torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))[:n]
    return sorted(order[place] for place in chosen.tolist())


def _standing_moved(engine: Engine, eps: float, member: Member, positions: Sequence[int]) -> list[bool]:
    """Which samples stand once they are moved one way or another, in the class that the model gives them there.

    They are moved by a part of a pixel: as little as changes one of them by ``MOVED_BY`` radii, or by a half.
    """
    index, left = engine.samples.index, list(positions)

    def show(size: int, *_: int) -> None:
        engine.bar.update(size * engine.ledger.ranks.size * member.cost)

    for roll, dim in ((1, 3), (-1, 3), (1, 2), (-1, 2)):

        def judge(at: Tensor, roll: int = roll, dim: int = dim) -> tuple[list[int], None]:
            images = engine.samples.images[at.to(engine.samples.images.device)]
            way = images.roll(roll, dim) - images
            longest = way.abs().flatten(1).amax(1).clamp(min=1e-9)[:, None, None, None]
            images = images + way * (MOVED_BY * eps / longest).clamp(max=0.5)
            labels = engine.victim.logits(images).argmax(1)
            batch = Batch(images, labels, eps, tuple(index[i] for i in at.tolist()), engine.seed, str(member))
            fell, _ = member.attack(engine.victim.under(member.mode), batch)
            return torch.where(fell, FELL, STANDS).tolist(), None

        engine.expect(len(left), [member])
        found, _ = engine.judge(f"check moved {roll} {dim} {member.job} {eps!r}", left, judge, show)
        left = [position for position in left if found[index[position]] != STANDS]
    return [position not in left for position in positions]
