#!/usr/bin/env bash
# The "Max" that SpikingJelly's conversion calibrates by is no maximum: it follows the order of the batches.
#
# Version: SpikingJelly 2.0.0; torch 2.14.1.
# RateCodingRecipe(loader, mode="Max") is documented to record the maximum of each activation; it becomes the scale at
# which the layer's neurons saturate. A network of one ReLU that passes its input on is calibrated with batches of one
# image of brightness 0.1, 0.2, ... 1.0, in rising and in falling order. Expected: a scale of 1 both times. Seen: a
# moving average with momentum 0.1, which begins at the first batch: 0.449 and 0.651. So a loader that is sorted by
# class or brightness, or another batch size, gives another SNN, and neurons that saturate below what was seen: an
# image of brightness 1 comes out as 0.45 and as 0.65, whatever the number of steps.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 spikingjelly==2.0.0
"$folder/venv/bin/python" -W ignore - <<'PYTHON' 2> "$folder/log" || { cat "$folder/log"; exit 1; }
import torch
from spikingjelly.activation_based import ann2snn
from torch import nn


class PassesOn(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.relu, self.last = nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)
        for layer in (self.first, self.last):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x):
        return self.last(self.relu(self.first(x)))


rising = [torch.full((1, 1), step / 10) for step in range(1, 11)]
found = {}
for name, batches in {"rising": rising, "falling": rising[::-1]}.items():
    loader = [(batch, torch.zeros(1)) for batch in batches]
    snn = ann2snn.Converter(ann2snn.RateCodingRecipe(loader, mode="Max")).convert(PassesOn().eval())
    scales = [float(module.scale) for module in snn.modules() if isinstance(module, ann2snn.modules.VoltageScaler)]
    with torch.no_grad():
        rate = torch.stack([snn(torch.ones(1, 1)) for _ in range(256)]).mean().item()
    found[name] = [round(scales[-1], 3), round(rate, 2)]
    print(f"{name:8} scale {found[name][0]}, an image of brightness 1 comes out as {found[name][1]}")
assert found == {"rising": [0.449, 0.45], "falling": [0.651, 0.65]}, f"the behaviour has changed: {found}"
PYTHON
