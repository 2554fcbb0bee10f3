#!/usr/bin/env bash
# snnTorch's sigmoid surrogate has no gradient below the threshold: it is no number there, and takes the weights along.
#
# Versions: snnTorch 1.0.0, SpikingJelly 2.0.0; torch 2.14.1.
# The derivative of a sigmoid of slope 25, snnTorch's default, falls to 0 on both sides of the threshold. Membranes that
# are 0.1, 3 and 4 below and 4 above it are differentiated by both libraries, at the same slope.
# Expected: 0 far from the threshold on both sides, as SpikingJelly gives. Seen: snnTorch gives nan at 4 below (from
# 88.7 / slope on, where exp overflows in float32 and is divided by its square), 0 at 4 above, and no message. One step
# of SGD on a layer with one such image in the batch leaves no number in the weights of its neurons, which then never
# fire; and the sign of the image's gradient is 0, so that a step of PGD leaves it where it is and it counts as robust.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 snntorch==1.0.0 spikingjelly==2.0.0
"$folder/venv/bin/python" -W ignore - <<'PYTHON' 2> "$folder/log" || { cat "$folder/log"; exit 1; }
import snntorch
import torch
from snntorch import surrogate as snntorch_surrogate
from spikingjelly.activation_based import surrogate as spikingjelly_surrogate

SPIKES = {"snnTorch": snntorch_surrogate.sigmoid(), "SpikingJelly": spikingjelly_surrogate.Sigmoid(alpha=25.0)}
found = {}
for name, spike in SPIKES.items():
    membrane = torch.tensor([-0.1, -3.0, -4.0, 4.0], requires_grad=True)
    spike(membrane).sum().backward()
    found[name] = ["nan" if x.isnan() else f"{x.item():.3f}" for x in membrane.grad]
    print(f"{name:12} 0.1, 3, 4 below and 4 above the threshold: {', '.join(found[name])}")

torch.manual_seed(0)
layer = torch.nn.Linear(2, 3)
torch.nn.init.constant_(layer.weight, 0.1)
neuron = snntorch.Leaky(beta=0.9)
neuron.spike_grad = snntorch_surrogate.sigmoid()
images = torch.tensor([[0.5, 0.5], [-20.0, -20.0]], requires_grad=True)
spikes, _ = neuron(layer(images), neuron.init_leaky())
spikes.sum().backward()
torch.optim.SGD(layer.parameters(), lr=0.1).step()
lost = layer.weight.isnan().sum().item()
moved = (images.grad.sign() != 0).any(1).tolist()
print(f"after one step {lost} of {layer.weight.numel()} weights are nan; the step moves image 1: {moved[0]}, 2: {moved[1]}")
expected = {"snnTorch": ["1.753", "0.000", "nan", "0.000"], "SpikingJelly": ["1.753", "0.000", "0.000", "0.000"]}
assert found == expected and lost == 6 and moved == [True, False], "the behaviour has changed"
PYTHON
