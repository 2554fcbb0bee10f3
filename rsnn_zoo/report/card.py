"""The model card of an entry, generated from its config and its evidence; no number in it is written by hand.

Example:
    >>> card = model_card(load_config("config.json"), load_json("evaluation.json"))  # doctest: +SKIP
"""

import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from rsnn_zoo.report.report import in_255
from rsnn_zoo.report.results import accuracies, cell, facts_of, results_of, shown
from rsnn_zoo.spec.config import ModelConfig
from rsnn_zoo.spec.datasets import DATASETS, DatasetInfo
from rsnn_zoo.spec.names import ModelName, UnknownNameError, is_model

_TITLES = {
    "vgg11": "VGG-11",
    "vgg16": "VGG-16",
    "resnet20": "ResNet-20",
    "resnet32": "ResNet-32",
    "wrn16_4": "WideResNet-16-4",
    "wrn28_4": "WideResNet-28-4",
}
_OBJECTIVES = {
    "natural": "natural training, without adversarial examples",
    "at": "adversarial training (Madry et al., ICLR 2018)",
    "trades": "TRADES (Zhang et al., ICML 2019)",
    "mart": "MART (Wang et al., ICLR 2020)",
    "alp": "adversarial logit pairing (Kannan et al., 2018)",
    "fast": "single-step adversarial training (N-FGSM; de Jorge et al., NeurIPS 2022)",
    "qub": "a quadratic upper bound of adversarial training with N-FGSM (You & Lee, ICML 2025)",
    "rat": "SNN-RAT (Ding et al., NeurIPS 2022)",
    "rslad": "RSLAD (robust soft labels from the ANN; Zi et al., ICCV 2021)",
}
_METHOD = (
    "Özdenizci, O., Legenstein, R.: Adversarially Robust Spiking Neural Networks Through Conversion. "
    "Transactions on Machine Learning Research, 2024."
)
_TEMPLATE = """\
# {name}

{summary}

## How to load it

Install the package first: `pip install .` in a checkout of rsnn_zoo (Python 3.10 or later).

```python
import rsnn_zoo

# In eval mode; the SHA-256 of the weights is checked. Images ({shape}) in [0, 1]: normalisation is inside.
model = rsnn_zoo.create_model("{source}", pretrained=True)
logits = model(images)  # (B, {classes})
```

{besides}

## Results

{results}

## How it was trained

{training}

## Intended use and limits

For research on the adversarial robustness of spiking networks. The figures hold for images of this data set, for
perturbations within the stated L-infinity balls, and for the stated attacks: a stronger attack can only lower them, and
other perturbations or other images are not covered. Not for decisions about people, nor where safety depends on it.

## Licence and data

Weights and code: MIT. {terms}

## Citation

- {citations}
"""


_LOADED_FROM = re.compile(r'create_model\("hf-hub:([A-Za-z0-9_.-]{1,96}/[A-Za-z0-9_.-]{1,96})", pretrained=True\)')
_COSTS = (("Spikes an image", "spikes", "per_image"), ("Energy relative to its ANN, estimated", "energy", "ratio"))
_TIMM_TOO = 'After `import rsnn_zoo`, `timm.create_model("local-dir:FOLDER", pretrained=True)` builds the same network.'
_OWN = """\
The architecture `{0}` is not part of rsnn_zoo. Before loading, run its author's Python file that registers it with
`@rsnn_zoo.register_architecture("{0}")`; on the command line, give that file by `--plugin`."""


def model_card(config: ModelConfig, evidence: Mapping[str, Any] | None = None, repo: str | None = None) -> str:
    """Return the text of ``README.md``, with the metadata that the Hub shows.

    Args:
        config: The entry's config; its ``name`` must be set.
        evidence: Content of ``evaluation.json``; None before the first evaluation.
        repo: ``"org/name"`` on the Hub, where that is not the zoo's own.
    """
    name, dataset, objective = _parts(config)
    ours = config.architecture in _TITLES
    tags = ["spiking-neural-network"] * bool(config.timesteps) + ["adversarial-robustness"] + ["timm"] * ours
    metadata = ModelCardData(
        license="mit",
        library_name="rsnn_zoo",
        pipeline_tag="image-classification",
        tags=tags,
        model_name=name,
        eval_results=_eval_results(evidence, dataset) if evidence else None,
        metrics=["accuracy"],
    )
    body = _TEMPLATE.format(
        name=name,
        summary=_summary(config, dataset, objective),
        source=f"hf-hub:{repo}" if repo else name if dataset else "local-dir:FOLDER",
        shape=f"B, {config.in_chans}, {config.img_size}, {config.img_size}",
        classes=config.num_classes,
        besides=_TIMM_TOO if ours else _OWN.format(config.architecture),
        results=results_of(evidence) if evidence else "Not evaluated yet.",
        training="\n".join(facts_of(_told(config.training))) or "Not recorded.",
        terms=f"{dataset.title}: {dataset.terms}" if dataset else "The terms of the training data apply.",
        citations="\n- ".join([_METHOD, dataset.citation] if dataset else [_METHOD]),
    )
    return f"---\n{metadata.to_yaml()}\n---\n\n{body}"


def check_card(
    text: str, config: ModelConfig, evidence: Mapping[str, Any] | None, repo: str | None = None
) -> str | None:
    """Check that a card is, word by word, what :func:`model_card` makes of the config and the evidence.

    Its metadata are compared as text too: no parser meets what somebody else wrote.

    Args:
        text: Content of ``README.md``.
        config: The entry's config.
        evidence: Content of ``evaluation.json``; None before the first evaluation.
        repo: ``"org/name"`` on the Hub that the entry came from; None where that is not known, and the card may name
            any repository to load it from.

    Returns:
        The repository that the card names, if any.

    Raises:
        ValueError: If anything differs; shows the first lines that do.
    """
    named = _LOADED_FROM.search(text)
    found = named[1] if named else None
    if repo and found not in (None, repo):
        raise ValueError(f"the card says to load {found}, and the entry is that of {repo}: load it by this name")
    expected = model_card(config, evidence, found).split("\n")
    if differing := _difference(text.replace("\r\n", "\n").split("\n"), expected):
        raise ValueError(
            f"the card is not what config and evidence make: {differing}. If its words are of another version, write "
            "it anew: rsnn_zoo.hub.publish.update_card(FOLDER)"
        )
    return found


def _difference(found: list[str], expected: list[str], most: int = 3) -> str:
    """What differs, in a time that grows with the length alone, unlike that of a shortest difference."""
    first = next((i for i, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), None)
    first = min(len(found), len(expected)) if first is None else first
    found, expected = found[first:], expected[first:]
    same = 0
    while same < min(len(found), len(expected)) and found[-1 - same] == expected[-1 - same]:
        same += 1
    sides = [
        [f"{sign} {line[:200]!r}" for line in lines[: len(lines) - same][:most]]
        for sign, lines in (("-", expected), ("+", found))
    ]
    return f"from line {first + 1} on, {' '.join(sides[0] + sides[1])}" if any(sides) else ""


def summary(config: ModelConfig, evidence: Mapping[str, Any] | None = None) -> str:
    """Return what the network is, what it achieved and what it costs, in a few lines of text."""
    _, dataset, objective = _parts(config)
    results = accuracies(evidence) if evidence else ["Not evaluated yet."]
    evidence = evidence or {}
    flags = (evidence.get("flags") or {}).items()
    raised = [f"Flag {name}: {cell(flag['message'])}" for name, flag in flags if flag["raised"]]
    notes = raised or (["No flag is raised."] if flags else [])
    notes += [
        f"{said}: {shown((evidence.get(part) or {})[key])}"
        for said, part, key in _COSTS
        if config.timesteps and key in (evidence.get(part) or {})
    ]
    return "\n".join([_summary(config, dataset, objective), "", *results, *([""] if notes else []), *notes])


def _parts(config: ModelConfig) -> tuple[str, DatasetInfo | None, str | None]:
    name = config.name or config.architecture
    try:
        parsed = ModelName.parse(name)
    except UnknownNameError:
        return name, None, None
    return name, DATASETS[parsed.dataset], parsed.objective


def _summary(config: ModelConfig, dataset: DatasetInfo | None, objective: str | None) -> str:
    network = f"{_TITLES.get(config.architecture, config.architecture)} with {config.num_classes} classes"
    if config.timesteps is None:
        kind = f"A {network}, an ordinary network with ReLU activations"
    else:
        leak = "no leak" if config.leak == 1 else f"leak {config.leak:g}"
        start = f", membranes that start at {config.initial:g} of the threshold" if config.initial else ""
        neurons = f"integrate-and-fire neurons with {config.reset} reset{start}, {leak} and trainable thresholds"
        kind = f"A spiking {network}: {neurons}, {config.timesteps} time steps, direct input coding"
    if dataset:
        kind += f". {_origin(config.training, dataset.title, objective)}"
    if config.weights:
        kind += f". {config.weights.num_parameters:,} parameters, {config.weights.total_size / 2**20:.1f} MiB"
        kind += f" in {config.weights.stored}" * bool(config.weights.stored)
    return kind + "."


def _origin(training: Mapping[str, Any], dataset: str, objective: str | None) -> str:
    """How the weights came to be; the objective in an SNN's name is that of the ANN it was converted from."""
    stage = training.get("stage")
    tuned = stage.get("objective") if isinstance(stage, Mapping) else None
    if not (ann := training.get("ann")):
        by = _OBJECTIVES.get(str(tuned or objective), cell(tuned or objective))
        return f"Trained on {dataset} by {by}" if stage else f"By its name trained on {dataset} by {by}: unrecorded"
    known = is_model(str(ann))  # and not the file of somebody's weights
    converted = f"Converted from {cell(ann)}, whose training is not recorded"
    if known:
        own = ModelName.parse(str(ann))
        objective, by = own.objective, _OBJECTIVES.get(own.objective, own.objective)
        converted = f"Converted from {cell(ann)}, itself trained on {DATASETS[own.dataset].title} by {by}"
    if not stage:
        return f"{converted}{', without fine-tuning' if 'conversion' in training else '; no fine-tuning is recorded'}"
    how = "the same objective" if known and tuned == objective else _OBJECTIVES.get(str(tuned), cell(tuned))
    where = "" if known else f" on {dataset}"
    return f"{converted}, and fine-tuned{where}" + (f" by {how}" if tuned else "")


def _eval_results(evidence: Mapping[str, Any], dataset: DatasetInfo | None) -> list[EvalResult]:
    def result(name: str, value: float, **args: Any) -> EvalResult:
        return EvalResult(
            task_type="image-classification",
            dataset_type=evidence["dataset"],
            dataset_name=dataset.title if dataset else evidence["dataset"],
            dataset_split=evidence.get("split"),
            metric_type="accuracy",
            metric_name=name,
            metric_value=round(value, 4),
            metric_args=args or None,
        )

    robust = [
        result(
            f"Robust accuracy, {run['protocol']}, eps {in_255(run['eps'])}",
            run["robust_accuracy"],
            eps=run["eps"],
        )
        for run in evidence.get("runs", [])
    ]
    return [result("Accuracy", evidence["clean"]["accuracy"]), *robust]


def _told(training: Mapping[str, Any]) -> Mapping[str, Any]:
    """The record of a training without the settings of an attack that never ran."""
    stage = training.get("stage")
    if not isinstance(stage, Mapping) or stage.get("objective") != "natural":
        return training
    unused = {*_ATTACK} if stage.get("validation_steps") else {*_ATTACK, *_VALIDATION_ONLY}
    return {**training, "stage": {key: value for key, value in stage.items() if key not in unused}}


_ATTACK = (
    *("weight", "eps", "eps_warmup", "steps_warmup"),
    *("attack", "attack_steps", "attack_step", "attack_start", "attack_loss", "attack_pass"),
)
_VALIDATION_ONLY = ("validation_eps", "validation_steps", "attack_mode")  # of the attack that selects the epoch
