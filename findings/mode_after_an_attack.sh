#!/usr/bin/env bash
# torchattacks leaves a network that came in evaluation mode in training mode, and its batch norm follows a batch later.
#
# Version: torchattacks 3.5.1; torch 2.14.1.
# set_model_training_mode(model_training=True), recommended for recurrent networks, is documented to hold during an
# attack; batch norm and dropout stay in evaluation mode by default. A network that says whether an image is brighter
# than 0.5 is put in evaluation mode, and batches of images of 0.6 to 1, which PGD may darken by 1/255, are attacked and
# then classified. Expected: evaluation mode after each attack, a robust accuracy of 1 in each batch, the same network
# afterwards. Seen: only a network that came in training mode gets its mode back, so after the first batch this one is
# in training mode, which the second attack then restores by train(), batch norm included. From there on attacked images
# are judged by the statistics of their own batch (robust accuracy 0.5) and overwrite those of the network, which, back
# in evaluation mode, finds half of the clean images right where it found all. No message says so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 torchattacks==3.5.1
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
import torchattacks
from torch import nn

BATCHES = 40
network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(1), nn.Linear(1, 2, bias=False))
network[1].running_mean.fill_(0.5)
network[1].running_var.fill_(1 / 12)
network[2].weight.data = torch.tensor([[-1.0], [1.0]])
network.eval()

images = torch.linspace(0.6, 1.0, 20).reshape(20, 1, 1, 1)
labels = torch.ones(20, dtype=torch.long)


def accuracy(shown):
    with torch.no_grad():
        return (network(shown).argmax(1) == labels).float().mean().item()


before = accuracy(images)
attack = torchattacks.PGD(network, eps=1 / 255, alpha=1 / 255, steps=2, random_start=False)
attack.set_model_training_mode(model_training=True)
robust, modes = [], []
for _ in range(BATCHES):
    attacked = attack(images, labels)
    modes.append((network.training, network[1].training))
    robust.append(round(accuracy(attacked), 2))
network.eval()
after = accuracy(images)
for batch in range(3):
    print(f"batch {batch + 1}: network in training mode {modes[batch][0]}, its batch norm {modes[batch][1]};", end=" ")
    print(f"robust accuracy {robust[batch]}")
print(f"clean accuracy in evaluation mode: {before:g} before, {after:g} after {BATCHES} batches")
print(f"batch norm's mean was 0.5 and is {network[1].running_mean.item():.2f}")
assert modes[:3] == [(True, False), (True, True), (True, True)], f"the behaviour has changed: {modes[:3]}"
assert robust == [1.0] + [0.5] * (BATCHES - 1), f"the behaviour has changed: {robust}"
assert before == 1 and after == 0.5, f"the behaviour has changed: {before}, {after}"
PYTHON
