#!/usr/bin/env bash
# Of four layers of convolutional networks that NIR defines, none is read alike by the importers of four simulators.
#
# Versions: nir 1.0.8, nirtorch 2.6, SpikingJelly 2.0.0, snnTorch 1.0.0, Sinabs 3.1.3, Norse 1.1.0; torch 2.14.1.
# Each graph is an input of 4 maps of 8x8, one layer, and an output; it is read by each library's own importer and shown
# one image. Expected: the numbers that NIR defines. Seen: a sum pool with a padding of 1 loses the padding in all four,
# so that maps of 4x4, as NIR itself infers them for the graph, come out as 3x3; a depthwise convolution (4 groups) NIR
# refuses itself, since it takes the second size of the weight for the number of input maps, and with that check off it
# is an error in all four, in three of them for the same reason; average pooling is read by two, scaling by none, and
# the others say that the graph is empty, or that the node is unknown.
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
import logging

import nir
import numpy as np
import sinabs
import torch
import torch.nn.functional as F
from norse.torch.utils.import_nir import from_nir
from snntorch.import_nir import import_from_nir
from spikingjelly.activation_based import nir_exchange

logging.disable(logging.WARNING)
rng = np.random.default_rng(0)
image = torch.from_numpy(rng.random((1, 4, 8, 8), dtype=np.float32))
kernel = rng.standard_normal((4, 1, 3, 3)).astype(np.float32)
two, three, one, zero = (np.array([n, n]) for n in (2, 3, 1, 0))

layers = {
    "padded sum pool": (
        lambda: nir.SumPool2d(kernel_size=three, stride=two, padding=one),
        9 * F.avg_pool2d(image, 3, 2, 1),
    ),
    "depthwise convolution": (
        lambda: nir.Conv2d(
            input_shape=(8, 8), weight=kernel, stride=1, padding=1, dilation=1, groups=4, bias=np.zeros(4, np.float32)
        ),
        F.conv2d(image, torch.from_numpy(kernel), padding=1, groups=4),
    ),
    "average pool": (lambda: nir.AvgPool2d(kernel_size=two, stride=two, padding=zero), F.avg_pool2d(image, 2)),
    "scale": (lambda: nir.Scale(scale=np.full((4, 8, 8), 2.0, np.float32)), 2 * image),
}
libraries = {
    "SpikingJelly": lambda graph: nir_exchange.import_from_nir(graph, dt=1.0),
    "Norse": from_nir,
    "snnTorch": import_from_nir,
    "Sinabs": lambda graph: sinabs.from_nir(graph, batch_size=1),
}


def graph(layer, checked=True):
    nodes = {"input": nir.Input(input_type=np.array([4, 8, 8])), "layer": layer, "output": nir.Output(output_type=None)}
    return nir.NIRGraph(nodes=nodes, edges=[("input", "layer"), ("layer", "output")], type_check=checked)


def refused(layer):
    try:
        graph(layer)
    except ValueError as error:
        print("NIR itself:", error)
        return True
    return False


def outcome(load, layer, expected, checked):
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            found = load(graph(layer, checked))(image)
    except (ValueError, NotImplementedError) as error:
        return type(error).__name__
    while isinstance(found, tuple):
        found = found[0]
    if found.shape != expected.shape:
        return f"{found.shape[-2]}x{found.shape[-1]} for {expected.shape[-2]}x{expected.shape[-1]}"
    return "right" if torch.allclose(found, expected, atol=1e-5) else "other numbers"


by_nir = {name for name, (make, _) in layers.items() if refused(make())}
found = {
    name: {library: outcome(load, make(), expected, name not in by_nir) for library, load in libraries.items()}
    for name, (make, expected) in layers.items()
}
assert by_nir == {"depthwise convolution"}, f"the behaviour has changed: NIR refuses {by_nir}"
for name, row in found.items():
    print(f"{name:22}", row)
seen = {
    "padded sum pool": ["3x3 for 4x4"] * 4,
    "depthwise convolution": ["NotImplementedError", "ValueError", "ValueError", "ValueError"],
    "average pool": ["right", "ValueError", "right", "ValueError"],
    "scale": ["ValueError"] * 4,
}
assert {name: list(row.values()) for name, row in found.items()} == seen, "the behaviour has changed"
PYTHON
