#!/usr/bin/env bash
# A float64 network of Sinabs resets by its threshold rounded to float32.
#
# Versions: Sinabs 3.1.3, SpikingJelly 2.0.0; torch 2.14.1.
# Spikes are compared between simulators in float64, since in float32 the order of sums flips some. A neuron with soft
# reset and threshold 0.1, all in float64, is given a current of 0.05 for 40 steps; 0.05 + 0.05 is 0.1 in float64.
# Expected: 20 spikes, one at every second step. Seen: SpikingJelly gives 20; Sinabs gives float32 spikes whatever the
# dtype, multiplies the threshold by them, subtracts too much by 1.5e-9, and from then on misses the threshold: 19.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 spikingjelly==2.0.0 sinabs==3.1.3
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sinabs.layers
import torch
from spikingjelly.activation_based import neuron

threshold = torch.tensor(0.1, dtype=torch.float64)
current = torch.full((40, 1), 0.05, dtype=torch.float64)

peer = neuron.IFNode(v_threshold=threshold.item(), v_reset=None, step_mode="m").double()(current)
layer = sinabs.layers.IAF(spike_threshold=threshold).double()
spikes = layer(current.T[..., None])
print(f"SpikingJelly: {int(peer.sum())} spikes, of {peer.dtype}")
print(f"Sinabs: {int(spikes.sum())} spikes, of {spikes.dtype}; its membrane is of {layer.v_mem.dtype}")
assert int(peer.sum()) == 20, "the behaviour has changed: SpikingJelly"
assert int(spikes.sum()) == 19 and spikes.dtype == torch.float32, "the behaviour has changed: Sinabs"
PYTHON
