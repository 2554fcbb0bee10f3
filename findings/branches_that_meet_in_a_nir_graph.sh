#!/usr/bin/env bash
# Where two branches of a NIR graph meet, two importers of four take one of them and leave the other out.
#
# Versions: nir 1.0.8, nirtorch 2.6, SpikingJelly 2.0.0, snnTorch 1.0.0, Sinabs 3.1.3, Norse 1.1.0; torch 2.14.1.
# NIR adds what all edges bring to a node. The graph is a residual block in small: the input, times 10 and times 100 in
# two branches, meets again in one node. An identity in place of one of the branches is the other case.
# Expected: 110 and 11 for an input of 1. Seen: SpikingJelly and snnTorch give them; Sinabs and Norse, which load through
# the older nirtorch.load, give 100 in the first case, without any message, so that every ResNet with a convolution in
# its shortcut is another network there.
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

ENDS = {"input": nir.Input(input_type=np.array([1])), "output": nir.Output(output_type=np.array([1]))}


def times(factor):
    return nir.Affine(weight=np.array([[factor]], np.float32), bias=np.zeros(1, np.float32))


def two_branches():
    nodes = {"first": times(1), "ten": times(10), "hundred": times(100), "last": times(1)} | ENDS
    edges = ["input first", "first ten", "first hundred", "ten last", "hundred last", "last output"]
    return nir.NIRGraph(nodes=nodes, edges=[tuple(edge.split()) for edge in edges])


def branch_and_identity():
    nodes = {"first": times(1), "ten": times(10), "last": times(1)} | ENDS
    edges = ["input first", "first ten", "first last", "ten last", "last output"]
    return nir.NIRGraph(nodes=nodes, edges=[tuple(edge.split()) for edge in edges])


libraries = {
    "SpikingJelly": lambda graph: nir_exchange.import_from_nir(graph, dt=1.0),
    "snnTorch": import_from_nir,
    "Sinabs": lambda graph: sinabs.from_nir(graph, batch_size=1),
    "Norse": from_nir,
}
found = {}
for name, load in libraries.items():
    outputs = []
    for graph in (two_branches(), branch_and_identity()):
        with contextlib.redirect_stdout(io.StringIO()):
            output = load(graph)(torch.ones(1, 1))
        outputs.append(float(output[0] if isinstance(output, tuple) else output))
    found[name] = outputs
    print(f"{name:12} two branches, of 110: {outputs[0]:g}; a branch and an identity, of 11: {outputs[1]:g}")
seen = {"SpikingJelly": [110, 11], "snnTorch": [110, 11], "Sinabs": [100, 11], "Norse": [100, 11]}
assert found == seen, f"the behaviour has changed: {found}"
PYTHON
