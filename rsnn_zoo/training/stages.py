"""What a recipe says: its tables, whose values are checked against bounds when they are made.

Example:
    >>> Stage(objective="at", eps=8 / 255).attack_steps
    10
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from rsnn_zoo.attacks.gradients import COMPUTE_DTYPES
from rsnn_zoo.attacks.inner import ATTACKS, STARTS
from rsnn_zoo.neurons.integrate_fire import MIN_THRESHOLD, Surrogate
from rsnn_zoo.neurons.modes import parse_mode
from rsnn_zoo.spec.config import RESETS
from rsnn_zoo.spec.datasets import Augmentation
from rsnn_zoo.spec.units import RELATIVE, UNITS
from rsnn_zoo.training.bounded import Checked, RecipeError, number, one_of
from rsnn_zoo.training.objectives import OBJECTIVES, get_objective

__all__ = ["Conversion", "Neuron", "Recipe", "RecipeError", "Split", "Stage", "split_of"]

_UNCHANGED = Augmentation()


@dataclass(frozen=True)
class Split(Checked):
    """How validation data are carved from the training data.

    Attributes:
        validation: Share held out.
        seed: Draws them.
    """

    validation: float = number(0.1, 0.0, 0.9)
    seed: int = number(0, 0, 2**31)


def split_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """How the training of an entry split its data, as arguments of :func:`rsnn_zoo.load_dataset`.

    With another split, images that it was trained on would count as validation images.

    Args:
        record: The entry's record of its training, which anybody may have written; the usual split where it has none.

    Raises:
        RecipeError: If the record cannot be used.

    Example:
        >>> split_of({"data": {"seed": 1}})
        {'validation': 0.1, 'seed': 1}
    """
    recorded = record.get("data", {})
    try:
        return asdict(Split(**recorded))
    except TypeError:
        raise RecipeError(f"training.data is {recorded!r:.100}, not how data are split: correct config.json") from None


@dataclass(frozen=True)
class Stage(Checked):
    """One training run, of an ANN or of an SNN: see ``rsnn_zoo.training.train.train``.

    Attributes:
        objective: A name of ``rsnn_zoo.training.objectives.OBJECTIVES``.
        weight: Of the objective's regulariser: beta of TRADES and MART, lambda of robust fine-tuning; for RSLAD the
            share of the adversarial images, 5/6 as published.
        label_smoothing: Of the cross-entropy.
        eps: Radius of the L-infinity ball in training.
        eps_warmup: Epochs over which eps grows from 0.
        attack: Inner attack, a name of ``rsnn_zoo.attacks.inner.ATTACKS``. With ``"free"`` each batch trains
            ``attack_steps`` times, and the attack goes one step further each time by the gradient of that very pass.
        attack_steps: Of PGD, or replays of a batch.
        attack_step: Size of a step in units of eps / steps.
        attack_start: Where PGD starts, a key of ``rsnn_zoo.attacks.inner.STARTS``, or ``"objective"`` for the start
            that the objective was published with.
        attack_loss: What the attacks in training maximise, ``"ce"`` or ``"kl"``, or ``"objective"`` for what the
            objective was published with.
        attack_mode: Backward mode of the attacks in training and validation, as ``rsnn_zoo.parse_mode`` reads it, or
            ``"own"`` for the surrogate that the weights learn by.
        attack_pass: What the attacks in training meet: the network as in ``"evaluation"``, with running statistics and
            folded batch norms, or the very pass of ``"training"``, with the statistics of the batch. A few roundings
            flip the spikes of an SNN, so what fools the one may not fool the other.
        units: Of the widths of surrogates: ``"threshold"``, or ``"absolute"``, as in the published research code.
        steps_warmup: Epochs over which PGD's steps grow from 1.
        epochs: Passes through the data.
        natural_epochs: How many of them, the first, learn from the cross-entropy of clean images alone, at a third or
            less of the time.
        batch_size: Images a weight update; what is left of an epoch is dropped.
        accumulate: Parts in which they go through the network, to save memory; batch norms see a part.
        lr: Peak learning rate, from which it falls along a cosine to 0.
        warmup: Epochs over which the learning rate grows from 0.
        threshold_lr: Peak learning rate of the thresholds.
        momentum: Of SGD.
        nesterov: Whether Nesterov's.
        weight_decay: Of convolutions and linear layers; norms, biases, thresholds and residual sums have none.
        retraction: Step towards orthonormal weights after each update, as SNN-RAT has it; 0 for none.
        clip: Largest norm of the gradient; 0 for no clipping.
        ema: Decay a step of the averaged weights, which then are the ones validated and kept; 0 for none.
        staircase: Of an ANN: levels of its activations in the last epochs, each with a learned clip
            (:mod:`rsnn_zoo.training.staircases`), such as the T of the SNN to come; 0 for plain ReLUs. What is
            validated and kept is the network of plain ReLUs.
        staircase_epochs: How many last epochs those are.
        precision: Of convolutions and linear layers, ``"float32"`` or ``"bfloat16"``.
        channels_last: Memory layout of the images and weights, where the network bears it: those of this zoo do.
        compile: Whether ``torch.compile`` makes one program of the training passes, and not just of each layer of
            neurons: a minute or more before the first step. Attacks run as ever, but for those on the training pass in
            one process.
        augmentation: Random crop, mirroring, cutout.
        validation_eps: Radius of the attack that selects the epoch.
        validation_steps: Its PGD steps; 0 to select by clean accuracy.
        validation_images: How many images select; 0 for all.
        validate_every: Epochs between two validations; the last epoch is always validated.
    """

    objective: str = one_of("natural", OBJECTIVES)
    weight: float = number(0.0, 0.0, 1000.0)
    label_smoothing: float = number(0.0, 0.0, 0.9)
    eps: float = number(0.0, 0.0, 1.0)
    eps_warmup: float = number(0.0, 0.0, 10_000.0)
    attack: str = one_of("pgd", ATTACKS)
    attack_steps: int = number(10, 1, 1000)
    attack_step: float = number(2.5, 0.0, 1000.0)
    attack_start: str = one_of("objective", ("objective", *STARTS))
    attack_loss: str = one_of("objective", ("objective", "ce", "kl"))
    attack_mode: str = "own"
    attack_pass: str = one_of("evaluation", ("evaluation", "training"))
    units: str = one_of(RELATIVE, UNITS)
    steps_warmup: float = number(0.0, 0.0, 10_000.0)
    epochs: int = number(1, 1, 10_000)
    natural_epochs: int = number(0, 0, 10_000)
    batch_size: int = number(128, 1, 2**20)
    accumulate: int = number(1, 1, 2**20)
    lr: float = number(0.1, 0.0, 100.0)
    warmup: float = number(0.0, 0.0, 10_000.0)
    threshold_lr: float = number(0.0, 0.0, 100.0)
    momentum: float = number(0.9, 0.0, 0.9999)
    nesterov: bool = True
    weight_decay: float = number(0.0, 0.0, 1.0)
    retraction: float = number(0.0, 0.0, 1.0)
    clip: float = number(0.0, 0.0, 1e6)
    ema: float = number(0.0, 0.0, 0.99999)
    staircase: int = number(0, 0, 1024)
    staircase_epochs: float = number(0.0, 0.0, 10_000.0)
    precision: str = one_of("float32", COMPUTE_DTYPES)
    channels_last: bool = False
    compile: bool = False
    augmentation: Augmentation = _UNCHANGED
    validation_eps: float = number(0.0, 0.0, 1.0)
    validation_steps: int = number(0, 0, 1000)
    validation_images: int = number(0, 0, 2**31)
    validate_every: int = number(1, 1, 10_000)

    def __post_init__(self) -> None:
        """Checks what single bounds do not say."""
        super().__post_init__()
        for contradicts, message in _CONTRADICTIONS:
            if contradicts(self):
                raise RecipeError(message.format(self))
        if self.attack_mode != "own":
            try:
                parse_mode(self.attack_mode)
            except (ValueError, AttributeError, TypeError) as error:
                raise RecipeError(f'attack_mode: {error}; or "own"') from error
        for key, pixels in (("crop_padding", self.augmentation.crop_padding), ("cutout", self.augmentation.cutout)):
            if isinstance(pixels, bool) or not isinstance(pixels, int) or pixels < 0:
                raise RecipeError(f"augmentation.{key} is {pixels!r}, must be a number of pixels")
        if not isinstance(self.augmentation.flip, bool):
            raise RecipeError(f"augmentation.flip is {self.augmentation.flip!r}, must be true or false")

    def unreached(self) -> list[str]:
        """What grows for longer than the stage lasts, and so never comes to its full value; a phrase for each."""
        grown = {"warmup": "lr", "eps_warmup": "eps", "steps_warmup": "attack_steps"}
        return [
            f"{key} is {getattr(self, key):g} epochs of {self.epochs}: {what} never reaches {getattr(self, what):g}"
            for key, what in grown.items()
            if getattr(self, key) > self.epochs
        ]


_CONTRADICTIONS: tuple[tuple[Callable[[Stage], Any], str], ...] = (
    (
        lambda stage: get_objective(stage.objective).inner and not stage.eps,
        "objective {0.objective!r} attacks while it trains: eps must be more than 0",
    ),
    (
        lambda stage: stage.natural_epochs >= stage.epochs,
        "natural_epochs is {0.natural_epochs} of {0.epochs} epochs: leave some for the objective",
    ),
    (
        lambda stage: stage.validation_steps and not stage.validation_eps,
        "validation_steps attack at validation_eps, which must be more than 0",
    ),
    (
        lambda stage: stage.objective == "rslad" and stage.weight > 1,
        "weight is a share for 'rslad' and {0.weight:g} here: at most 1, such as 5/6",
    ),
    (
        lambda stage: stage.nesterov and not stage.momentum,
        "Nesterov's momentum must be more than 0: set momentum, or nesterov = false",
    ),
    (
        lambda stage: bool(stage.staircase) != bool(stage.staircase_epochs),
        "staircase and staircase_epochs go together: levels, and the last epochs that have them",
    ),
    (
        lambda stage: stage.staircase and stage.compile,
        "staircase changes the network while it trains: set compile = false",
    ),
    (
        lambda stage: stage.attack == "free" and (stage.attack_loss, stage.attack_mode) != ("objective", "own"),
        "the free attack follows the training's own gradient: leave attack_loss and attack_mode",
    ),
)
"""What no single bound says of a stage, and why it cannot be."""


@dataclass(frozen=True)
class Neuron(Checked):
    """The neurons of the SNN.

    Attributes:
        reset: ``"hard"`` or ``"soft"``.
        leak: Of the membrane.
        initial: Membrane before the first step, as a part of the threshold.
        surrogate: Kind of the surrogate derivative in training.
        width: Its width.
        threshold: Where direct training starts; conversion finds thresholds of its own.
    """

    reset: str = one_of("hard", RESETS)
    leak: float = number(1.0, 1e-6, 1.0)
    initial: float = number(0.0, 0.0, 0.999)
    surrogate: str = "pcw"
    width: float = number(1.0, 1e-6, 1000.0)
    threshold: float = number(1.0, MIN_THRESHOLD, 1000.0)

    def __post_init__(self) -> None:
        """Checks the surrogate too."""
        super().__post_init__()
        try:
            self.arguments()
        except ValueError as error:
            raise RecipeError(str(error)) from error

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of ``rsnn_zoo.convert``, and of a network."""
        surrogate = Surrogate(self.surrogate, self.width)
        return {"reset": self.reset, "leak": self.leak, "initial": self.initial, "surrogate": surrogate}


@dataclass(frozen=True)
class Conversion(Checked):
    """How thresholds are found: see ``rsnn_zoo.convert``.

    Attributes:
        method: ``"published"``, which recipes have meant all along, or ``"absorb"``, which reads ``images`` and
            ``max_pool`` alone.
        images: Training images to find thresholds with.
        percentile: Of each layer's currents that becomes its threshold.
        scale: Factor on the thresholds found.
        calibration_timesteps: Steps over which thresholds are found.
        max_pool: ``"spikes"`` or ``"average"``.
    """

    method: str = one_of("published", ("published", "absorb"))
    images: int = number(128, 1, 2**20)
    percentile: float = number(99.7, 0.001, 100.0)
    scale: float = number(0.3, 0.001, 100.0)
    calibration_timesteps: int = number(100, 1, 10_000)
    max_pool: str = one_of("spikes", ("spikes", "average"))

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of ``rsnn_zoo.convert``, besides the images."""
        used = {"method", "max_pool"} if self.method == "absorb" else {item.name for item in fields(self)} - {"images"}
        return {key: value for key, value in asdict(self).items() if key in used}


@dataclass(frozen=True)
class Recipe:
    """Stages from data to a robust SNN.

    Attributes:
        name: Name of the recipe.
        data: How the data are split.
        ann: Training of the ANN.
        neuron: Of the SNN.
        conversion: Of the ANN into an SNN.
        snn: Fine-tuning of the converted SNN.
        direct: Training of an SNN from scratch, without ANN and conversion.
    """

    name: str
    data: Split = Split()
    ann: Stage = Stage()
    neuron: Neuron = Neuron()
    conversion: Conversion = Conversion()
    snn: Stage = Stage()
    direct: Stage = Stage()

    def __post_init__(self) -> None:
        if self.snn.retraction and self.conversion.method == "absorb":
            message = "snn.retraction holds residual sums to weights that sum to 1, but absorbed thresholds are in them"
            raise RecipeError(f'{message}: set snn.retraction = 0, or conversion.method = "published"')

    def stage(self, table: str) -> Stage:
        """The table ``ann``, ``snn`` or ``direct``.

        Raises:
            RecipeError: If the file has no such table.
        """
        found: Stage = getattr(self, table)
        if found == Stage():
            raise RecipeError(f"recipe {self.name} has no table [{table}]: write one, or choose another recipe")
        return found

    def to_json(self) -> dict[str, Any]:
        """The recipe as ``config.json`` keeps it."""
        return asdict(self)
