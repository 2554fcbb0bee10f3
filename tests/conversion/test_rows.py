"""What stands in the rows, images and steps, is never mixed; other kinds of ReLU and norm; what is no ReLU."""

import copy

import pytest
import torch
from torch import nn

from rsnn_zoo.conversion.conversion import calibrate, convert, relearn_statistics
from rsnn_zoo.neurons.integrate_fire import Relu, backward_mode
from tests.conversion.conftest import QUICK, assert_same_function, images, plain, seeded, with_statistics_of

pytestmark = pytest.mark.usefixtures("eager")

# --- what is in the rows --------------------------------------------------------------------------------------------


class Sized(nn.Module):
    """Takes the number of images from its input: with neurons before the view, that is not the number of rows."""

    def __init__(self):
        super().__init__()
        self.conv1, self.relu1, self.conv2 = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)
        self.relu2, self.fc1, self.relu3, self.fc2 = nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5)

    def forward(self, x):
        n = x.shape[0]
        x = self.relu2(self.conv2(self.relu1(self.conv1(x)))).view(n, 8, -1).mean(2)
        return self.fc2(self.relu3(self.fc1(x)))


class PatchesFirst(nn.Module):
    """Puts patches before the images, so a neuron would take them for steps."""

    def __init__(self):
        super().__init__()
        self.conv, self.stem, self.linear, self.relu = nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Linear(8, 8), nn.ReLU()
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(self.conv(x)).flatten(2)
        patches = x.permute(2, 0, 1)
        x = self.relu(self.linear(patches.reshape(-1, 8))).view(*patches.shape[:2], 8)
        return self.head(x.mean(0))


def test_no_network_mixes_images_or_steps():
    x = images(6, dtype=torch.float64)
    snn = convert(seeded(Sized).double(), 4, x, scale=1.0, **QUICK)
    assert not snn.stem_once and not any(neuron.repeated for _, neuron in snn.neurons())
    with torch.no_grad():
        per_step = snn(x, per_step=True)
        alone = torch.cat([snn(image[None], per_step=True) for image in x], 1)
        snn.timesteps = 2
        torch.testing.assert_close(snn(x, per_step=True), per_step[:2])
    torch.testing.assert_close(alone, per_step)
    assert per_step.std() > 0
    with pytest.raises(ValueError, match=r"network\.relu is shown something else of two images over three steps"):
        convert(seeded(PatchesFirst), 4, images(6), **QUICK)


class MyReLU(nn.ReLU):
    """As some have it."""


class MyNorm(nn.BatchNorm2d):
    """With a forward pass of its own, through which torch.fx would go."""

    def forward(self, x):
        return super().forward(x) + 0.0


class Doubly(nn.Module):
    """Uses its activation twice, beside another one and norms of its own kind."""

    def __init__(self, relu, other):
        super().__init__()
        self.conv1, self.norm1, self.conv2, self.norm2 = nn.Conv2d(3, 6, 3), MyNorm(6), nn.Conv2d(6, 6, 3), MyNorm(6)
        self.relu, self.other, self.fc = relu, other, nn.Linear(6, 5)

    def forward(self, x):
        x = self.relu(self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x))))))
        return self.fc(self.other(x - 0.1).mean((2, 3)))


@pytest.mark.parametrize(("relu", "other"), [(nn.ReLU, MyReLU), (MyReLU, nn.ReLU), (MyReLU, MyReLU)])
def test_kinds_of_relu_and_norm_survive_the_split(relu, other):
    ann = seeded(lambda: Doubly(relu(), other())).eval()
    snn = convert(ann, 3, images(), **QUICK)
    assert len(list(snn.neurons())) == 3
    assert sum(isinstance(module, MyNorm) for module in snn.modules()) == 2
    assert_same_function(with_statistics_of(ann, snn), snn, images(seed=1))


class Doubled(nn.ReLU):
    """No ReLU."""

    def forward(self, x):
        return 2 * super().forward(x)


class Attends(nn.Module):
    """Softmax, inside of one operator."""

    def __init__(self):
        super().__init__()
        self.relu, self.attention = nn.ReLU(), nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x):
        x = self.relu(x).flatten(2).transpose(1, 2)
        return self.attention(x, x, x, need_weights=False)[0].transpose(1, 2).unflatten(2, (8, 8))


class Gated(nn.Module):
    """A ReLU by another name."""

    def forward(self, x):
        return x * (x > 0)


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (Doubled(), r"1 \(Doubled\) computes something else"),
        (Attends().eval(), r"attention \(MultiheadAttention\) applies native_multi_head_attention"),
        (Gated(), r"1 \(Gated\) applies gt"),
    ],
)
def test_what_is_no_relu_is_refused(layer, said):
    with pytest.raises(ValueError, match=said):
        convert(plain(layer), 2, images(), **QUICK)


class Says(nn.Module):
    """A network that returns something around its logits."""

    def __init__(self, around):
        super().__init__()
        self.network, self.around = plain(nn.ReLU()), around

    def forward(self, x):
        return self.around(self.network(x))


def test_networks_that_cannot_be_converted_say_why():
    for around, said in ((lambda z: {"logits": z}, "a dict"), (lambda z: (z, z), "a tuple"), (lambda z: z[0], "shape")):
        with pytest.raises(ValueError, match=f"gives no logits .*{said}.*wrap it"):
            convert(Says(around), 2, images(), **QUICK)
    with pytest.raises(ValueError, match="scripted network has no modules"):
        convert(torch.jit.trace(plain(nn.ReLU()), images()), 2, images(), **QUICK)
    ann = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 4, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    ann(images())
    with pytest.raises(ValueError, match=r"cannot be copied .*parametrizations"):
        convert(ann, 2, images(), **QUICK)


def test_thresholds_and_statistics_do_not_hang_on_what_the_caller_has_in_force():
    ann, x = plain(nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5)), images()
    expected = convert(ann, 2, x, **QUICK)
    with backward_mode(Relu()), torch.autocast("cpu", torch.bfloat16):
        found = convert(ann, 2, x, **QUICK)
        other = copy.deepcopy(expected).train()
        calibrate(other, x, timesteps=5)
        relearn_statistics(other, x)
    assert all(module.training for module in other.modules())
    for snn in (found, other):
        for name, tensor in expected.state_dict().items():
            assert torch.equal(snn.state_dict()[name], tensor), name
