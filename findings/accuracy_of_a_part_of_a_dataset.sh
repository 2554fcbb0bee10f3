#!/usr/bin/env bash
# NeuroBench divides accuracy and sparsity by the size of the whole data set, however much of it the loader hands out.
#
# Versions: NeuroBench 2.3.0, snnTorch 1.0.0; torch 2.14.1.
# A spiking network that is right on all 100 images, one of its ten neurons firing at each step, is benchmarked over all
# of them, over 90 (batches of 30, the last, short one dropped), over 20 that a sampler draws, and over a Subset of the
# same 20. Expected: an accuracy of 1 and a sparsity of 0.9 each time. Seen: so for all and for the Subset, but 0.9 and
# 0.81 where the last batch is dropped, 0.2 and 0.18 with the sampler, and no message. A batch is weighted by its size
# over len(loader.dataset), which counts images that were never shown; the operations of the same report are divided by
# those that were. Where an attack is evaluated on a sampled part of the test set, or on whole batches only, robust
# accuracy comes out too low, and the network busier than it is.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 snntorch==1.0.0 neurobench==2.3.0
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import snntorch
import torch
from neurobench.benchmarks import Benchmark
from neurobench.metrics.workload import ActivationSparsity, ClassificationAccuracy, SynapticOperations
from neurobench.models import SNNTorchModel
from neurobench.processors.postprocessors import ChooseMaxCount
from torch import nn
from torch.utils.data import DataLoader, Subset, SubsetRandomSampler, TensorDataset

STEPS = 4
labels = torch.arange(100) % 10
images = torch.eye(10)[labels].unsqueeze(1).repeat(1, STEPS, 1)  # (images, steps, pixels): one bright pixel, the label
everything = TensorDataset(images, labels)

layer = nn.Linear(10, 10, bias=False)
layer.weight.data = 2 * torch.eye(10)
network = nn.Sequential(layer, snntorch.Leaky(beta=0.9, init_hidden=True, output=True))

loaders = {
    "all 100": DataLoader(everything, batch_size=30),
    "90, drop_last": DataLoader(everything, batch_size=30, drop_last=True),
    "20 of a sampler": DataLoader(everything, batch_size=10, sampler=SubsetRandomSampler(range(20))),
    "20 of a Subset": DataLoader(Subset(everything, range(20)), batch_size=10),
}
found = {}
for name, loader in loaders.items():
    metrics = [ClassificationAccuracy, ActivationSparsity, SynapticOperations]
    report = Benchmark(SNNTorchModel(network), loader, [], [ChooseMaxCount()], [[], metrics]).run(quiet=True)
    operations = report["SynapticOperations"]["Effective_ACs"]
    found[name] = [round(report[metric.__name__], 3) for metric in metrics[:2]] + [operations]
    print("{:16} accuracy {:.2f}, sparsity {:.2f}, operations for an image {:g}".format(name, *found[name]))
seen = {
    "all 100": [1.0, 0.9, 4.0],
    "90, drop_last": [0.9, 0.81, 4.0],
    "20 of a sampler": [0.2, 0.18, 4.0],
    "20 of a Subset": [1.0, 0.9, 4.0],
}
assert found == seen, f"the behaviour has changed: {found}"
PYTHON
