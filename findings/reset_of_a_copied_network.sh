#!/usr/bin/env bash
# snnTorch's reset of a copied network resets the network that it was copied from, and leaves the copy as it is.
#
# Versions: snnTorch 1.0.0, SpikingJelly 2.0.0; torch 2.14.1.
# Attacks, averaged weights and process pools work on a copy.deepcopy of a network. A linear layer and a leaky neuron
# with a hidden state are copied, both are shown the same current, and the copy is reset by the library's function.
# Expected: the copy's membrane is 0 again, the original's is what it was. Seen: SpikingJelly does that; snnTorch's
# utils.reset(copy) sets the original's to 0 and keeps the copy's, without any message, so the next image meets the
# membrane that the one before left. Neurons stand in a list of their class that only the constructor adds to, which
# a copy does not call, and reset goes through that list, whatever network it is given.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 snntorch==1.0.0 spikingjelly==2.0.0
"$folder/venv/bin/python" -W ignore - <<'PYTHON' 2> "$folder/log" || { cat "$folder/log"; exit 1; }
import copy

import snntorch
import torch
from snntorch import utils
from spikingjelly.activation_based import functional, neuron
from torch import nn

NEURONS = {
    "snnTorch": (snntorch.Leaky(beta=0.9, init_hidden=True), lambda one: one.mem, utils.reset),
    "SpikingJelly": (neuron.IFNode(), lambda one: one.v, functional.reset_net),
}
found = {}
for name, (one, membrane, reset) in NEURONS.items():
    layer = nn.Linear(1, 1)
    nn.init.constant_(layer.weight, 0.5)
    nn.init.zeros_(layer.bias)
    network = nn.Sequential(layer, one)
    copied = copy.deepcopy(network)
    with torch.no_grad():
        network(torch.ones(1, 1)), copied(torch.ones(1, 1))
    reset(copied)
    found[name] = [float(membrane(each[1])) for each in (network, copied)]
    print(f"{name:12} membrane of the network {found[name][0]}, of the copy that was reset {found[name][1]}")
assert found == {"snnTorch": [0.0, 0.5], "SpikingJelly": [0.5, 0.0]}, f"the behaviour has changed: {found}"
PYTHON
