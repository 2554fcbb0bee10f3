"""Networks for the digits that train in a second: to evaluate many times, or to break on purpose."""

from functools import cache

import torch
from torch import Tensor, nn

from rsnn_zoo.data.images import ImageData, load_dataset
from rsnn_zoo.neurons.integrate_fire import SpikingNeuron


class Dense(nn.Module):
    """One hidden layer, ReLU or spiking, from images in [0, 1] to logits."""

    def __init__(self, activation: nn.Module):
        super().__init__()
        self.hidden, self.activation, self.out = nn.Linear(64, 64), activation, nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.out(self.activation(self.hidden(x.flatten(1))))
        return logits.reshape(-1, len(x), 10).mean(0)


def fit(model: nn.Module, images: Tensor, labels: Tensor, steps: int = 150) -> nn.Module:
    with torch.enable_grad():
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    model.zero_grad()
    return model.eval()


@cache
def digits(split: str = "test") -> ImageData:
    return load_dataset("digits", split)


@cache
def network(spiking: bool = False, binary: bool = False) -> nn.Module:
    """Trained on the digits, or on black and white ones; the same in every process."""
    data = digits("train")
    images = data.pixels().round() if binary else data.pixels()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return fit(Dense(SpikingNeuron(4, repeated=True) if spiking else nn.ReLU()), images, data.labels)
