#!/usr/bin/env bash
# Whether a membrane that reaches the threshold exactly fires depends on the simulator.
#
# Versions: SpikingJelly 2.0.0, Sinabs 3.1.3, snnTorch 1.0.0, Norse 1.1.0; torch 2.14.1.
# An integrate-and-fire neuron with threshold 1 and no leak is given a current of exactly 1 at the first of two steps.
# Expected: all four agree. Seen: SpikingJelly and Sinabs fire at once (u >= threshold), snnTorch and Norse do not
# (u > threshold), so a network whose currents are multiples of the threshold (binary inputs, integer weights,
# thresholds brought to 1) gives other spikes after a port, without any message.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 spikingjelly==2.0.0 snntorch==1.0.0 sinabs==3.1.3 norse==1.1.0
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import norse.torch
import sinabs.layers
import snntorch
import torch
from spikingjelly.activation_based import neuron

current = torch.tensor([[1.0], [0.0]])  # (steps, neurons)


def step_by_step(cell):
    state, spikes = None, []
    for now in current:
        spike, state = cell(now, state)
        spikes.append(spike)
    return torch.stack(spikes)


soft = neuron.IFNode(v_threshold=1.0, v_reset=None, step_mode="m")
leaky = snntorch.Leaky(beta=1.0, threshold=1.0, reset_mechanism="subtract")
found = {
    "SpikingJelly IFNode": soft(current),
    "Sinabs IAF": sinabs.layers.IAF()(current.T[..., None]).reshape(2, 1),
    "snnTorch Leaky(beta=1)": step_by_step(lambda now, state: leaky(now, leaky.init_leaky() if state is None else state)),
    "Norse IAFCell": step_by_step(norse.torch.IAFCell()),
}
fired = {name: [int(spike) for spike in spikes.flatten()] for name, spikes in found.items()}
for name, spikes in fired.items():
    print(f"{name:24} spikes at the two steps: {spikes}")
seen = {
    "SpikingJelly IFNode": [1, 0],
    "Sinabs IAF": [1, 0],
    "snnTorch Leaky(beta=1)": [0, 0],
    "Norse IAFCell": [0, 0],
}
assert fired == seen, f"the behaviour has changed: {fired}"
PYTHON
