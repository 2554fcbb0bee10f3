#!/usr/bin/env bash
# One integrate-and-fire node of a NIR graph becomes three different neurons in the importers of four simulators.
#
# Versions: nir 1.0.8, nirtorch 2.6, SpikingJelly 2.0.0, snnTorch 1.0.0, Sinabs 3.1.3, Norse 1.1.0; torch 2.14.1.
# NIR defines IF as v' = r * i, a spike where v exceeds the threshold, then v = v_reset. The graph has one such node,
# r = 1, threshold 1, v_reset 0, behind a weight of 1, and is shown a constant current for 60 steps.
# Expected: the same number of spikes from each library's own importer, one a step at most. Seen: snnTorch makes it a
# leaky neuron (beta 0.9), which never fires at a current of 0.09 where the others fire five times; Sinabs subtracts
# the threshold in place of the reset and fires several times a step; SpikingJelly and Norse agree. No message says so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 nir==1.0.8 nirtorch==2.6 spikingjelly==2.0.0 snntorch==1.0.0
# Sinabs declares nir <= 1.0.4, nirtorch nir >= 1.0.6
"$folder/venv/bin/pip" install --quiet --no-deps sinabs==3.1.3 pbr==7.1.3 norse==1.1.0
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import contextlib
import io

import nir
import numpy as np
import sinabs
import torch
from norse.torch.utils.import_nir import from_nir
from snntorch.import_nir import import_from_nir
from spikingjelly.activation_based import nir_exchange

STEPS = 60


def graph():
    one = np.ones(1, np.float32)
    nodes = {
        "input": nir.Input(input_type=np.array([1])),
        "weight": nir.Affine(weight=np.eye(1, dtype=np.float32), bias=0 * one),
        "neuron": nir.IF(r=one, v_threshold=one, v_reset=0 * one),
        "output": nir.Output(output_type=np.array([1])),
    }
    return nir.NIRGraph(nodes=nodes, edges=[("input", "weight"), ("weight", "neuron"), ("neuron", "output")])


def step_by_step(network, current):
    state, spikes = None, 0.0
    for _ in range(STEPS):
        found, state = network(torch.full((1, 1), current)) if state is None else network(torch.full((1, 1), current), state)
        spikes += float((found[0] if isinstance(found, tuple) else found).sum())
    return int(spikes)


def all_steps(network, current):
    found = network(torch.full((STEPS, 1), current))
    return int((found[0] if isinstance(found, tuple) else found).sum())


libraries = {
    "SpikingJelly": (lambda: nir_exchange.import_from_nir(graph(), dt=1.0), step_by_step),
    "Norse": (lambda: from_nir(graph()), step_by_step),
    "snnTorch": (lambda: import_from_nir(graph()), step_by_step),
    "Sinabs": (lambda: sinabs.from_nir(graph(), batch_size=1), all_steps),
}
counts = {}
for name, (load, show) in libraries.items():
    with contextlib.redirect_stdout(io.StringIO()):
        counts[name] = [show(load(), current) for current in (0.09, 0.3, 2.5)]
    print(f"{name:12} spikes in {STEPS} steps at currents of 0.09, 0.3 and 2.5: {counts[name]}")
seen = {"SpikingJelly": [5, 15, 60], "Norse": [5, 15, 60], "snnTorch": [0, 15, 60], "Sinabs": [5, 17, 150]}
assert counts == seen, f"the behaviour has changed: {counts}"
PYTHON
