"""``config.json`` of an entry: what the network is, where its weights are, how they came to be.

One file serves two readers. timm reads the top level (``architecture``, ``num_classes``, ``model_args``,
``pretrained_cfg``), so ``timm.create_model("local-dir:hub_configs/NAME", pretrained=True)`` works; everything of our
own stands under ``"rsnn_zoo"``, which timm ignores. Whoever wrote the file, every value is checked against bounds
before it is used: a config cannot make us allocate absurd sizes or write outside its folder. Free of torch.

Example:
    >>> config = load_config("hub_configs/resnet20_digits_trades_t4/config.json")  # doctest: +SKIP
    >>> config.architecture, config.timesteps  # doctest: +SKIP
    ('resnet20', 4)
"""

import os
import re
from dataclasses import asdict, dataclass, field
from typing import Any

from rsnn_zoo._utils.files import ConfigError, load_json
from rsnn_zoo.spec.datasets import DATASETS
from rsnn_zoo.spec.names import MAX_TIMESTEPS, ModelName, UnknownNameError, architectures, near_matches
from rsnn_zoo.spec.schema import Section
from rsnn_zoo.spec.timm_cfg import pretrained_cfg

SCHEMA = 1
CONFIG = "config.json"
CARD = "README.md"
EVIDENCE = "evaluation.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
"""Of shards, where the weights are more than one file should have."""
MAX_WEIGHTS_BYTES = 2**32
RESETS = ("hard", "soft")
"""What a spike leaves of the membrane: nothing, or all above the threshold."""
DTYPES = ("float64", "float32", "float16", "bfloat16")
STORED = ("bfloat16",)
"""What the large tensors of a float32 network can be stored as."""

_PREFIX = "rsnn_"  # our models in timm's registry
_MODEL_ARGS = ("in_chans", "img_size", "timesteps", "reset", "leak", "mean", "std")
_FAMILY_ARGS = {"vgg": "hidden_features", "resnet": "channel_sums"}
# what is meant where an argument is absent
_USUAL = {"initial": 0.0, "surrogate": None, "hidden_features": None, "channel_sums": False, "scaled": False}
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}")
_ONE_FILE = re.compile(FILE_NAME.pattern + r"(?<=\.safetensors)")
_INDEX = re.compile(FILE_NAME.pattern + r"(?<=\.safetensors\.index\.json)")
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_MODULE_PATH = re.compile(r"[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+){0,7}")
_ARCHITECTURE = re.compile(_PREFIX + r"(?=.{1,64}$)[a-z][a-z0-9]*(?:_[a-z0-9]+)*")
SHA256 = re.compile(r"[0-9a-f]{64}")
_SURROGATE = re.compile(r"(?:pcw|exp|exp_d|rect)-\d{1,4}(?:\.\d{1,20})?(?:e-\d{1,2})?|ste")


@dataclass(frozen=True)
class FileInfo:
    """A file of an entry: its plain name, its SHA-256 as hexadecimal digits, and its size in bytes."""

    file: str
    sha256: str
    size: int


@dataclass(frozen=True)
class WeightsInfo(FileInfo):
    """The weights of an entry: one file, or an index and the shards that it names.

    ``sha256`` names the weights: it is that of the one file, or of the index, which holds those of the shards.

    Attributes:
        dtype: Of the network.
        num_parameters: Of the network.
        stored: Type that the large tensors have in the files, where it is another; they are widened when loaded.
        shards: The files that the tensors are in, where they are not in ``file``.
    """

    dtype: str
    num_parameters: int
    stored: str | None = None
    shards: tuple[FileInfo, ...] = ()

    @property
    def files(self) -> tuple[FileInfo, ...]:
        """Every file of these weights."""
        return (FileInfo(self.file, self.sha256, self.size), *self.shards)

    @property
    def total_size(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files)

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``rsnn_zoo.weights``."""
        return {key: value for key, value in asdict(self).items() if value not in (None, ())}


@dataclass(frozen=True)
class ModelConfig:
    """A validated ``config.json``.

    Attributes:
        architecture: One of :func:`rsnn_zoo.spec.names.architectures`.
        num_classes: Number of classes, 1 to 10,000.
        num_features: Width of the layer before the classifier.
        in_chans: Input channels, 1 to 16.
        img_size: Height and width of the square input, 4 to 128 pixels.
        timesteps: Time steps; None for the ReLU network.
        mean: Mean of each channel for pixels in [0, 1]; the network normalises by itself.
        std: Standard deviation of each channel.
        reset: ``"hard"`` or ``"soft"``.
        leak: Membrane decay a step, in (0, 1].
        initial: Membrane before the first step, as a part of the threshold, in [0, 1).
        surrogate: Name of the derivative by which training goes on, as ``"rect-0.5"``; None for ``"pcw-1"``.
        hidden_features: Width of the hidden linear layers of a VGG, 1 to 16,384; None for the other networks, and for
            a VGG of the usual width.
        channel_sums: Whether each channel of a ResNet's residual sums has two weights of its own.
        scaled: Whether each layer of neurons has a gain beside it that its spikes stand for.
        first_conv: Name of the first convolution, for timm.
        classifier: Name of the classifier layer, for timm.
        name: Name of the entry; None in configs that ``rsnn_zoo`` did not write.
        weights: The weights files; None in configs that ``rsnn_zoo`` did not write.
        revision: Tag or commit on the Hub that holds these weights; None for the newest.
        created: ISO 8601 time at which the weights were saved.
        training: How the weights came to be: recipe, seed, versions, hardware.
    """

    architecture: str
    num_classes: int
    num_features: int
    in_chans: int
    img_size: int
    timesteps: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    reset: str = "hard"
    leak: float = 1.0
    initial: float = 0.0
    surrogate: str | None = None
    hidden_features: int | None = None
    channel_sums: bool = False
    scaled: bool = False
    first_conv: str = "conv1"
    classifier: str = "fc"
    name: str | None = None
    weights: WeightsInfo | None = None
    revision: str | None = None
    created: str | None = None
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def model_args(self) -> dict[str, Any]:
        """The keyword arguments that build the network, besides ``num_classes``."""
        args = _as_json({key: getattr(self, key) for key in _MODEL_ARGS})
        return args | {key: value for key, usual in _USUAL.items() if (value := getattr(self, key)) != usual}

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``config.json``; ``parse_config`` reads it back."""
        ours: dict[str, Any] = {"schema": SCHEMA, "name": self.name, "created": self.created, "revision": self.revision}
        ours["weights"] = self.weights.to_json() if self.weights else None
        ours["training"] = self.training
        cfg = pretrained_cfg(self.num_classes, self.in_chans, self.img_size, self.first_conv, self.classifier)
        cfg = {"input_size": None, "fixed_input_size": True, **cfg, "license": "mit"}
        return {
            "architecture": _PREFIX + self.architecture,
            "num_classes": self.num_classes,
            "num_features": self.num_features,
            "model_args": self.model_args,
            "pretrained_cfg": _as_json(cfg),
            "rsnn_zoo": {key: value for key, value in ours.items() if value is not None},
        }


def _as_json(content: dict[str, Any]) -> dict[str, Any]:
    """Tuples as the lists that JSON makes of them."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in content.items()}


def load_config(path: str | os.PathLike[str], *, registered: bool = True) -> ModelConfig:
    """Read and check a ``config.json``.

    Args:
        path: Of the file.
        registered: As of :func:`parse_config`.

    Raises:
        FileNotFoundError: If there is no such file.
        ConfigError: If it is not a usable config; names the key, the cause and the remedy.
    """
    return parse_config(load_json(path), str(path), registered=registered)


def parse_config(content: Any, source: str, *, registered: bool = True) -> ModelConfig:
    """Check the content of a ``config.json``.

    Args:
        content: The parsed JSON.
        source: Where it came from, for the error message.
        registered: Whether the architecture has to be known here; not where the network is only to be described.

    Raises:
        ConfigError: If a key is missing, unknown, of the wrong type or out of bounds, or two keys disagree.
    """
    top = Section(content, source)
    args = top.section("model_args")
    cfg = top.section("pretrained_cfg", optional=True)
    ours = top.section("rsnn_zoo", optional=True)
    weights = ours.section("weights", optional=True)
    if ours.value("schema", SCHEMA) != SCHEMA:
        raise ours.error("schema", f"is not {SCHEMA}, the one that this version reads; upgrade rsnn_zoo")
    architecture = _architecture(top, source, registered)
    known = {*_MODEL_ARGS, "initial", "surrogate", "scaled"}
    known |= {own for family, own in _FAMILY_ARGS.items() if architecture.startswith(family)}
    if unknown := set(args.content) - known:
        raise args.error(min(unknown), f"is not an argument of {architecture}")

    in_chans = args.integer("in_chans", 1, 16)
    config = ModelConfig(
        architecture=architecture,
        num_classes=top.integer("num_classes", 1, 10_000),
        num_features=top.integer("num_features", 1, 65_536),
        in_chans=in_chans,
        img_size=args.integer("img_size", 4, 128),
        timesteps=None if args.value("timesteps", None) is None else args.integer("timesteps", 1, MAX_TIMESTEPS),
        mean=args.numbers("mean", in_chans, -10.0, 10.0),
        std=args.numbers("std", in_chans, 1e-6, 10.0),
        reset=args.one_of("reset", RESETS, "hard"),
        leak=args.number("leak", 1e-6, 1.0, 1.0),
        initial=args.number("initial", 0.0, 1 - 1e-6, 0.0),
        surrogate=args.text("surrogate", _SURROGATE, None),
        hidden_features=args.integer("hidden_features", 1, 16_384) if "hidden_features" in args.content else None,
        channel_sums=args.flag("channel_sums"),
        scaled=args.flag("scaled"),
        first_conv=cfg.text("first_conv", _MODULE_PATH, "conv1"),
        classifier=cfg.text("classifier", _MODULE_PATH, "fc"),
        name=ours.text("name", FILE_NAME, None),
        revision=ours.text("revision", _REVISION, None),
        created=ours.text("created", re.compile(r"[0-9T:.+-]{10,40}Z?"), None),
        training=ours.section("training", optional=True).content,
        weights=_weights(weights) if weights.content else None,
    )
    _check_name(config, ours)
    _check_neuron(config, args)
    return config


def _architecture(top: Section, source: str, registered: bool) -> str:
    known, named = tuple(_PREFIX + a for a in architectures()), str(top.value("architecture"))
    if not registered and _ARCHITECTURE.fullmatch(named):
        return named.removeprefix(_PREFIX)
    if named.startswith(_PREFIX) and named not in known:
        raise ConfigError(
            f"{source}: architecture is {named!r:.100}{near_matches(named, known)}; one of its author's own is to be "
            "registered first (--plugin FILE.py)"
        )
    return top.one_of("architecture", known).removeprefix(_PREFIX)


def _weights(weights: Section) -> WeightsInfo:
    shards = tuple(FileInfo(**_file(shard, _SHARD)) for shard in weights.sections("shards"))
    info = WeightsInfo(
        **_file(weights, _INDEX if shards else _ONE_FILE),
        dtype=weights.one_of("dtype", DTYPES),
        num_parameters=weights.integer("num_parameters", 1, MAX_WEIGHTS_BYTES),
        stored=weights.one_of("stored", STORED, None),
        shards=shards,
    )
    if info.stored and info.dtype != "float32":
        raise weights.error("stored", f"is {info.stored}, which only float32 can be stored as, and not {info.dtype}")
    if [shard.file for shard in shards] != shard_names(len(shards)):
        raise weights.error("shards", f"must be {len(shards)} files from {shard_names(len(shards))[0]} on, in order")
    if info.total_size > MAX_WEIGHTS_BYTES:
        raise weights.error("shards", f"have {info.total_size:,} bytes, must have at most {MAX_WEIGHTS_BYTES:,}")
    return info


def shard_names(count: int) -> list[str]:
    """Return the names of so many shards, as the Hub has them.

    Example:
        >>> shard_names(2)
        ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
    """
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _file(section: Section, name: re.Pattern[str]) -> dict[str, Any]:
    return {
        "file": section.text("file", name),
        "sha256": section.text("sha256", SHA256),
        "size": section.integer("size", 8, MAX_WEIGHTS_BYTES),
    }


def _check_neuron(config: ModelConfig, args: Section) -> None:
    """No checksum covers what the neurons do, but the record of the training names it a second time."""
    trained = config.training.get("neuron")
    if config.timesteps is None or not isinstance(trained, dict):
        return
    for key in ("reset", "leak", "initial"):
        if trained.get(key, value := getattr(config, key)) != value:
            raise args.error(
                key, f"is {value!r}, but training.neuron.{key} is {trained[key]!r}: one of them is damaged"
            )


def _check_name(config: ModelConfig, ours: Section) -> None:
    """A name of the grid promises what the network is; free names of other publishers promise nothing."""
    try:
        name = ModelName.parse(config.name or "")
    except UnknownNameError:
        return
    dataset = DATASETS[name.dataset]
    promised = {"architecture": name.architecture, "timesteps": name.timesteps, "num_classes": dataset.num_classes}
    promised |= {"img_size": dataset.img_size, "in_chans": dataset.in_chans}
    for key, value in promised.items():
        if getattr(config, key) != value:
            raise ours.error("name", f"promises {key} {value}, but {key} is {getattr(config, key)}")
