"""Checkpoints of the published research code: every tensor finds its place, and nothing else is taken."""

import math
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch.nn import functional as F

from rsnn_zoo import from_research_checkpoint
from rsnn_zoo.models import ARCHITECTURES
from rsnn_zoo.spec.datasets import DATASETS
from tests.parity import SHAPES, VGG_LAYERS

pytestmark = pytest.mark.usefixtures("eager")


def deeper(shapes, first, blocks, wanted):
    """The names and shapes of a network with ``wanted`` blocks a stage, from one with ``blocks``."""
    numbered = [(int(name.split(".")[1]), name) for name in shapes if name.startswith("features.")]
    found = {name: shape for name, shape in shapes.items() if not name.startswith("features.")}
    for number, name in numbered:
        stage, block = divmod(number - first, blocks)
        if number < first:
            places = [number]
        elif stage >= 3:  # what follows the last stage
            places = [number + 3 * (wanted - blocks)]
        else:
            last = block == blocks - 1
            places = [first + stage * wanted + i for i in (range(block, wanted) if last else [block])]
        rest = name.split(".", 2)[2]
        found |= {f"features.{place}.{rest}": shapes[name] for place in places}
    return found


SHAPES = SHAPES | {
    "resnet32": lambda classes: deeper(SHAPES["resnet20"](classes), 3, 3, 5),
    "wrn28_4": lambda classes: deeper(SHAPES["wrn16_4"](classes), 1, 2, 4),
}


def checkpoint(architecture, num_classes=10, dtype=torch.float32, thresholds=True):
    """A state dict under that code's names, with weights of a sensible size."""
    generator = torch.Generator().manual_seed(0)
    state = OrderedDict()
    for name, shape in SHAPES[architecture](num_classes).items():
        if name.endswith("v_th"):
            if thresholds:
                state[name] = torch.empty(shape, dtype=dtype).uniform_(0.3, 0.9, generator=generator)
        elif name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")) or name.endswith("comb"):
            state[name] = torch.empty(shape, dtype=dtype).uniform_(0.5, 1.5, generator=generator)
        else:
            bound = math.sqrt(6 / math.prod(shape[1:])) if len(shape) > 1 else 0.3
            state[name] = torch.empty(shape, dtype=dtype).uniform_(-bound, bound, generator=generator)
    return state


def written_out(state, architecture, x):
    """The ANN of a checkpoint, from that code's names alone."""

    def norm(name, x):
        running = (state[f"{name}.running_mean"], state[f"{name}.running_var"])
        return F.batch_norm(x, *running, state[f"{name}.weight"], state[f"{name}.bias"])

    def conv(name, x, stride=1):
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, state.get(f"{name}.bias"), stride, padding=weight.shape[-1] // 2)

    def linear(number, x):
        return F.linear(x, state[f"classifier.{number}.weight"], state[f"classifier.{number}.bias"])

    if architecture.startswith("vgg"):
        layers, linears = VGG_LAYERS[architecture]
        position = 0
        for item in layers:
            if item == "A":
                x, position = F.avg_pool2d(x, 2), position + 1
            else:
                x, position = norm(f"features.{position + 1}", conv(f"features.{position}", x)).relu(), position + 3
        x = x.mean((2, 3)) if architecture == "vgg11_64" else x.flatten(1)
        *hidden, last = linears
        for number in hidden:
            x = linear(number, x).relu()
        return linear(last, x)

    depth = {"resnet20": 3, "resnet32": 5, "wrn16_4": 2, "wrn28_4": 4}[architecture]
    resnet = architecture.startswith("resnet")
    x = conv("features.0", x)
    x = norm("features.1", x).relu() if resnet else x
    for i in range(3 * depth):
        block, stride = f"features.{i + (3 if resnet else 1)}", 2 if i in (depth, 2 * depth) else 1
        shortcut, y = x, x
        if resnet:
            y = norm(
                f"{block}.bn2", conv(f"{block}.conv2", norm(f"{block}.bn1", conv(f"{block}.conv1", y, stride)).relu())
            )
            if f"{block}.shortcut.0.weight" in state:
                shortcut = norm(f"{block}.shortcut.1", conv(f"{block}.shortcut.0", x, stride))
        else:
            y = norm(f"{block}.bn1", x).relu()
            if f"{block}.convShortcut.weight" in state:
                shortcut = conv(f"{block}.convShortcut", y, stride)
            y = conv(f"{block}.conv2", norm(f"{block}.bn2", conv(f"{block}.conv1", y, stride)).relu())
        first, second = state[f"{block}.convex.comb"]
        x = first * shortcut + second * y
        x = x.relu() if resnet else x
    x = x if resnet else norm(f"features.{1 + 3 * depth}", x).relu()
    return linear(1, x.mean((2, 3)))


@pytest.fixture(scope="module")
def resnet20():
    return checkpoint("resnet20")


def load(state, architecture="resnet20", num_classes=10, timesteps=4, **kwargs):
    return from_research_checkpoint(state, architecture, num_classes, timesteps, **kwargs)


@pytest.mark.parametrize("architecture", SHAPES)
def test_every_tensor_finds_its_place(architecture):
    state = checkpoint(architecture, thresholds=False)
    side = 64 if architecture.endswith("_64") else 32
    model = load(state, architecture.removesuffix("_64"), timesteps=None, img_size=side)
    x = torch.rand(2, 3, side, side)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (DATASETS["cifar10"].mean, DATASETS["cifar10"].std))
    with torch.no_grad():
        expected = written_out(state, architecture, (x - mean) / std)
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert not model.training


@pytest.mark.parametrize("architecture", ["resnet20", "wrn16_4", "resnet32", "wrn28_4"])
def test_thresholds_go_to_the_neurons_in_their_order(architecture):
    state = checkpoint(architecture)
    model = load(state, architecture, 10, 3, reset="soft")
    assert (model.timesteps, model.reset) == (3, "soft")
    expected = [tensor.item() for name, tensor in state.items() if name.endswith("v_th")]
    fired = []
    for _, neuron in model.neurons():
        neuron.register_forward_hook(lambda neuron, *_: fired.append(neuron.threshold.item()))
    model(torch.rand(1, 3, 32, 32))
    by_name = dict(zip((n for n in state if n.endswith("v_th")), expected, strict=True))
    assert fired == [by_name[name] for name in sorted(by_name, key=lambda n: (int(n.split(".")[1]), n))]


@pytest.mark.parametrize("architecture", SHAPES)
def test_no_parameter_is_too_much_or_too_little(architecture):
    side = 64 if architecture.endswith("_64") else 32
    with torch.device("meta"):
        model = ARCHITECTURES[architecture.removesuffix("_64")](num_classes=10, timesteps=4, img_size=side)
    shapes = {name: shape for name, shape in SHAPES[architecture](10).items() if "running" not in name}
    assert sum(parameter.numel() for parameter in model.parameters()) == sum(map(math.prod, shapes.values()))


def test_the_precision_is_that_of_the_checkpoint():
    model = load(checkpoint("resnet20", dtype=torch.float64))
    assert {tensor.dtype for name, tensor in model.state_dict().items() if "tracked" not in name} == {torch.float64}
    # whatever the precision, that code holds mean and std in float32
    assert torch.equal(model.normalize.mean, torch.tensor(DATASETS["cifar10"].mean).double())


@pytest.mark.parametrize(
    ("num_classes", "dataset", "size"), [(10, "cifar10", 32), (100, "cifar100", 32), (200, "tinyimagenet", 64)]
)
def test_the_data_set_is_told_by_the_classes(num_classes, dataset, size):
    model = load(checkpoint("resnet20", num_classes), num_classes=num_classes)
    torch.testing.assert_close(model.normalize.std.tolist(), list(DATASETS[dataset].std), rtol=1e-6, atol=0)
    assert model.img_size == size


def test_normalisation_can_be_said(resnet20):
    model = load(resnet20, dataset="svhn")
    torch.testing.assert_close(model.normalize.mean.tolist(), list(DATASETS["svhn"].mean), rtol=1e-6, atol=0)
    model = load(resnet20, dataset="svhn", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))  # as that code does
    assert model.normalize.mean.tolist() == [0.5] * 3 and model.normalize.std.tolist() == [0.25] * 3
    with pytest.raises(ValueError, match="3 channels need as many means"):
        load(resnet20, mean=(0.5,))


# --- as people keep them --------------------------------------------------------------------------------------------


def test_wrappers_prefixes_and_shapes_of_thresholds_do_not_matter(resnet20, tmp_path):
    expected = load(resnet20).state_dict()
    parallel = {f"module.{name}": tensor for name, tensor in resnet20.items()}
    exported = tmp_path / "parallel.safetensors"
    safetensors.torch.save_file(parallel, exported)
    counted = resnet20 | {
        f"{name[:-12]}num_batches_tracked": torch.tensor(7) for name in resnet20 if "running_mean" in name
    }
    long = {name: tensor.reshape(1) if name.endswith("v_th") else tensor for name, tensor in resnet20.items()}
    for source in (
        *({key: resnet20, "epoch": 3} for key in ("state_dict", "model_state_dict", "net", "model")),
        parallel,
        {"net": parallel},
        exported,
        long,
    ):
        found = load(source).state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert load(counted).bn1.num_batches_tracked == 7


def test_a_file_is_read(resnet20, tmp_path):
    torch.save({"net": resnet20, "acc": 93.2, "epoch": 199}, tmp_path / "resnet20.pth")
    for path in (tmp_path / "resnet20.pth", str(tmp_path / "resnet20.pth")):
        found = load(path).state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in load(resnet20).state_dict().items())


def test_the_given_state_dict_is_left_as_it_was(resnet20):
    names, first = list(resnet20), resnet20["features.0.weight"].clone()
    model = load(resnet20)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert list(resnet20) == names and torch.equal(resnet20["features.0.weight"], first)


# --- what is refused ------------------------------------------------------------------------------------------------


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, 2))])
def test_a_pickle_that_runs_code_is_refused_and_not_run(resnet20, tmp_path, save):
    path, ran = tmp_path / "evil.pth", tmp_path / "ran"
    save({"net": dict(resnet20), "args": Evil(ran)}, path)
    with pytest.raises(ValueError, match=r"evil\.pth .*a pickle can run code"):
        load(path)
    assert not ran.exists()


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-100], lambda data: b"", lambda data: b"<html>", lambda data: data[:40]]
)
def test_a_damaged_file_is_refused(resnet20, tmp_path, damage):
    path = tmp_path / "broken.pth"
    torch.save(resnet20, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"broken\.pth is damaged"):
        load(path)


def test_a_file_that_is_not_there_is_said_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        load(tmp_path / "nowhere.pth")


@pytest.mark.parametrize("content", [{}, [1, 2], {"weights": 3}, {"net": {"a": "b"}}, torch.zeros(3)])
def test_what_is_no_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="not a state dict"):
        load(tmp_path / "other.pth")


@pytest.mark.parametrize(
    ("removed", "added", "said"),
    [
        ("features.4.conv1.weight", {}, r"missing \(our names\): layer1\.1\.conv1\.weight\n.*: none\n.*: none\n"),
        (("classifier.1.bias", "features.2.v_th"), {}, r"missing .*: .*act1\.threshold.*fc\.bias"),
        ("v_th", {}, r"and thresholds.*missing .*act1\.threshold, .*timesteps=None for an ANN"),
        ((), {"features.12.v_th": ()}, r"missing .*: none\n.*unknown \(their names\): features\.12\.v_th\n"),
        ((), {"extra": (1,), "normalize.mean": (3,)}, r"unknown .*: extra, normalize\.mean\n"),
        ((), {"classifier.1.weight": (9, 64), "classifier.1.bias": (9,)}, r"shape: fc\.weight, fc\.bias\n"),
        ((), {"features.0.weight": (3, 16, 3, 3)}, r"shape: conv1\.weight\n"),
        ((), {"features.0.weight": (432,)}, r"shape: conv1\.weight\n"),
        ((), {"features.2.v_th": (16,)}, r"shape: act1\.threshold\n"),
        ((), {"features.1.weight": (1,)}, r"shape: bn1\.weight\n"),
    ],
)
def test_missing_unknown_and_misshapen_tensors_are_listed(resnet20, removed, added, said):
    state = {name: tensor for name, tensor in resnet20.items() if not name.endswith(removed)}
    state |= {name: torch.zeros(shape) for name, shape in added.items()}
    with pytest.raises(ValueError, match=rf"(?s)not a resnet20 with 10 classes.*{said}"):
        load(state)


def test_a_checkpoint_of_an_snn_is_not_one_of_an_ann(resnet20):
    with pytest.raises(
        ValueError, match=r"with 10 classes of the research code:\n.*none\n.*unknown .*features\.2\.v_th"
    ):
        load(resnet20, timesteps=None)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"architecture": "resnet21"}, ValueError, "unknown architecture 'resnet21': choose one of .*resnet20"),
        ({"dataset": "cifar11"}, ValueError, "unknown data set 'cifar11': choose one of .*cifar10"),
        ({"timesteps": 0}, ValueError, "at least 1"),
        ({"timesteps": 2.5}, TypeError, "integer"),
        ({"reset": "none"}, ValueError, "'hard' or 'soft'"),
        ({"architecture": "resnet32"}, ValueError, r"missing .*layer1\.3\."),
        ({"architecture": "wrn16_4"}, ValueError, "missing .*layer1"),
        ({"num_classes": 100}, ValueError, r"shape: fc\.weight, fc\.bias"),
        ({"dataset": "fmnist"}, ValueError, r"shape: conv1\.weight"),
    ],
)
def test_wrong_arguments_are_refused(resnet20, change, error, said):
    with pytest.raises(error, match=f"(?s){said}"):
        load(resnet20, **change)
