#!/usr/bin/env bash
# Sinabs' count of synaptic operations of one time step is that of all steps where batch and time are two dimensions.
#
# Version: Sinabs 3.1.3; torch 2.14.1.
# register_synops_hooks reports operations per time step, by its documentation a mean over batch and time steps, and per
# second from it. Two linear layers with integrate-and-fire neurons between get three spikes at each step. The neurons
# are once sinabs.layers.IAF, which take (images, steps, neurons), and once IAFSqueeze, which take (images * steps,
# neurons); both give the same spikes. Expected: the same count, whatever the number of steps. Seen: only the first
# dimension is averaged, so IAFSqueeze's is right and IAF's is 10 times that for 10 steps and 20 times for 20, with no
# message. A figure for energy or power from it grows with the simulated time, by the layers' class and not by activity.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 sinabs==3.1.3
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sinabs.layers
import torch
from sinabs.hooks import register_synops_hooks
from torch import nn

IMAGES = 2


def layer(inputs, outputs):
    made = nn.Linear(inputs, outputs, bias=False)
    nn.init.constant_(made.weight, 0.25)
    return made


def measure(neurons, squeezed, steps):
    network = nn.Sequential(layer(8, 6), neurons, layer(6, 4))
    register_synops_hooks(network, dt=0.001)
    x = torch.zeros(IMAGES, steps, 8)
    x[..., :3] = 1.0
    spikes = []
    neurons.register_forward_hook(lambda module, given, output: spikes.append(output.sum().item()))
    with torch.no_grad():
        network(x.flatten(0, 1) if squeezed else x)
    by_hand = (x.sum().item() * 6 + spikes[0] * 4) / (IMAGES * steps)
    counts = [network.hook_data[f"total_synops_per_{unit}"].item() for unit in ("timestep", "second")]
    return [round(by_hand, 1), round(counts[0], 1), round(counts[1])]


found = {}
for steps in (10, 20):
    found["IAF", steps] = measure(sinabs.layers.IAF(), False, steps)
    found["IAFSqueeze", steps] = measure(sinabs.layers.IAFSqueeze(batch_size=IMAGES), True, steps)
for (name, steps), (by_hand, per_step, per_second) in found.items():
    print(f"{steps} steps, {name:10} {per_step:g} operations a step, {per_second} a second; by hand {by_hand:g} a step")
seen = {
    ("IAF", 10): [34.8, 348.0, 348000],
    ("IAFSqueeze", 10): [34.8, 34.8, 34800],
    ("IAF", 20): [36.0, 720.0, 720000],
    ("IAFSqueeze", 20): [36.0, 36.0, 36000],
}
assert found == seen, f"the behaviour has changed: {found}"
PYTHON
