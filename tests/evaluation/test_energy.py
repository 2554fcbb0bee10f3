"""Spikes and operations, against networks small enough to count by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from rsnn_zoo.conversion.conversion import convert
from rsnn_zoo.evaluation.energy import AC_PICOJOULE, MAC_PICOJOULE, _operations, energy
from rsnn_zoo.models import resnet20
from rsnn_zoo.neurons.integrate_fire import SpikingNeuron

pytestmark = pytest.mark.usefixtures("eager")

# A 3x3 convolution of a 4x4 image, padded by 1, meets 9 pixels in 4 places, 6 in 8, and 4 in the corners: 100.
STRIPES = torch.tensor([1.0, 0.0, 1.0, 0.0]).expand(1, 1, 4, 4)


class Small(nn.Module):
    """1 channel to 2 that fire at every step where the pixel is 1; then 16 * 2 inputs to 3, and 16 * 3 to 5."""

    def __init__(self, timesteps, *between):
        super().__init__()
        self.timesteps = timesteps
        conv1, conv2 = nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.Conv2d(2, 3, 1)
        with torch.no_grad():
            conv1.weight.zero_()[:, :, 1, 1] = 1.0
            conv2.weight.fill_(-1.0)  # the second layer is silent
            conv2.bias.zero_()
        neurons = [SpikingNeuron(timesteps, 0.5, repeated=i == 0) if timesteps else nn.ReLU() for i in range(2)]
        self.layers = nn.Sequential(conv1, neurons[0], *between, conv2, neurons[1], nn.Flatten(), nn.LazyLinear(5))
        self.layers(torch.zeros(1, 1, 4, 4))

    def forward(self, x):
        logits = self.layers(x)
        return logits.view(self.timesteps or 1, -1, 5).mean(0)


@pytest.mark.parametrize("timesteps", [1, 2, 3])
def test_spikes_and_operations_are_those_counted_by_hand(timesteps):
    result = energy(Small(timesteps), STRIPES)
    assert result["spikes"]["per_image"] == 2 * 8 * timesteps  # 2 channels, 8 pixels that are 1
    assert result["spikes"]["rates"] == {"layers.1": 0.5, "layers.3": 0.0}
    found = result["energy"]
    assert found["macs"] == 2 * 100  # the image, once and not T times
    assert found["accumulates"] == timesteps * (2 * 8 * 3)  # what is silent costs nothing
    assert found["ann_macs"] == 2 * 100 + 2 * 16 * 3 + 3 * 16 * 5
    assert found["nanojoule"] == pytest.approx((4.6 * 200 + 0.9 * timesteps * 48) / 1000)
    assert found["ann_nanojoule"] == pytest.approx(4.6 * 536 / 1000)
    assert found["ratio"] == pytest.approx(found["nanojoule"] / found["ann_nanojoule"])
    assert (
        (found["picojoule_per_mac"], found["picojoule_per_accumulate"]) == (MAC_PICOJOULE, AC_PICOJOULE) == (4.6, 0.9)
    )


@pytest.mark.parametrize("timesteps", [1, 3])
def test_what_meets_averages_of_spikes_is_multiplied(timesteps):
    found = energy(Small(timesteps, nn.AvgPool2d(2)), STRIPES)["energy"]
    assert found["macs"] == 200 + timesteps * (2 * 4 * 3)  # averages of 1/2 in 4 places
    assert found["accumulates"] == 0
    assert found["ann_macs"] == 200 + 2 * 4 * 3 + 3 * 4 * 5
    assert energy(Small(timesteps, nn.MaxPool2d(2)), STRIPES)["energy"]["accumulates"] == timesteps * (2 * 4 * 3)


def test_an_ann_multiplies_everything():
    result = energy(Small(None), STRIPES)
    assert result.keys() == {"energy"}
    assert result["energy"]["macs"] == result["energy"]["ann_macs"] == 536
    assert (result["energy"]["accumulates"], result["energy"]["ratio"]) == (0, 1)


class Around(nn.Module):
    """The image goes around the first neuron, so that conversion repeats it in time."""

    def __init__(self):
        super().__init__()
        self.conv1, self.act1, self.conv2, self.act2 = nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(3, 2, 1), nn.ReLU()

    def forward(self, x):
        return self.act2(self.conv2(torch.cat([x, self.act1(self.conv1(x))], 1))).mean((2, 3))


def test_the_image_counts_once_even_where_it_is_repeated_in_time():
    images = torch.rand(4, 1, 4, 4) / 2 + 0.25
    snn = convert(Around(), 3, images, calibration_timesteps=5, method="published")
    assert not snn.stem_once
    result = energy(snn, images)
    fired = result["spikes"]["rates"]["network.act1"] * 2 * 16  # a step
    assert result["energy"]["macs"] == pytest.approx(2 * 16 + 3 * 2 * (16 + fired))
    assert result["energy"]["ann_macs"] == 2 * 16 + 3 * 16 * 2


class Patches(nn.Module):
    """Folds patches into the batch, behind the images."""

    def __init__(self):
        super().__init__()
        self.conv, self.stem, self.linear, self.relu = nn.Conv2d(1, 4, 4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU()
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        tokens = self.stem(self.conv(x)).flatten(2).transpose(1, 2)
        x = self.relu(self.linear(tokens.reshape(-1, 4)))
        return self.head(x.view(len(tokens), -1, 4).mean(1))


def test_patches_count_each():
    torch.manual_seed(0)
    ann, images = Patches(), torch.rand(3, 1, 8, 8)
    snn = convert(ann, 4, images, calibration_timesteps=5, method="published")
    dense = 4 * 16 * 4 + 4 * 4 * 4 + 4 * 5  # patches times products of each layer, and the head
    for model in (ann, snn):
        assert energy(model, images)["energy"]["ann_macs"] == dense


def test_the_operations_of_resnet20_are_those_of_its_layers():
    images = torch.rand(2, 3, 32, 32)
    snn = convert(resnet20(), 2, images, calibration_timesteps=5, method="published")

    def conv(inputs, outputs, size, stride=1):  # the pixels that a 3x3 convolution meets; the padding is none
        return inputs * outputs * (3 * size - 2 if stride == 1 else 3 * size - 1) ** 2

    expected = conv(3, 16, 32) + 6 * conv(16, 16, 32)
    for width, size in ((32, 16), (64, 8)):
        expected += conv(width // 2, width, size, 2) + 5 * conv(width, width, size) + width // 2 * width * size**2
    result = energy(snn, images)
    assert result["energy"]["ann_macs"] == expected + 64 * 10
    assert result["energy"]["accumulates"] > 0  # all convolutions but the first take spikes
    assert (
        conv(3, 16, 32) < result["energy"]["macs"] <= conv(3, 16, 32) + 2 * 64 * 10
    )  # and the pooled spikes at the end
    assert len(result["spikes"]["rates"]) == 19 and all(0 <= rate <= 1 for rate in result["spikes"]["rates"].values())


def test_the_answer_does_not_depend_on_the_batch_size():
    images = (
        torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0)) > 0.5
    ).float()  # 0 and 1, yet no spikes
    model = Small(3)
    assert energy(model, images, 2) == energy(model, images, 1) == energy(model, images)


def test_the_model_is_left_as_it_was():
    model = Small(2).train()
    energy(model, STRIPES)
    assert model.training and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@given(
    size=st.integers(5, 9),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 4]),
    density=st.sampled_from([0.0, 0.2, 1.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_the_operations_of_any_convolution_are_its_products_of_what_is_not_zero(
    size, kernel, stride, padding, dilation, groups, density, seed
):
    layer = nn.Conv2d(4, 8, kernel, stride, padding, dilation, groups)
    x = (torch.rand(2, 4, size, size, generator=torch.Generator().manual_seed(seed)) < density).double()
    columns = F.unfold(x, kernel, dilation, padding, stride)  # every input that each output meets, (B, C k k, places)
    assert _operations(layer, 3.5 * x) == columns.sum().item() * 8 / groups
