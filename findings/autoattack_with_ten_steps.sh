#!/usr/bin/env bash
# torchattacks' AutoAttack(version="standard") runs a tenth of the steps that the protocol prescribes.
#
# Version: torchattacks 3.5.1; torch 2.14.1.
# The published protocol gives APGD-CE, targeted APGD and targeted FAB 100 iterations each (Croce & Hein, ICML 2020,
# and the reference implementation's standard version). Seen: torchattacks' "standard" builds all three with 10
# steps, its class has no argument for them, and nothing says so; Square keeps its 5000 queries. Robust accuracy
# quoted from it is therefore too high and not comparable with figures called AutoAttack elsewhere.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 torchattacks==3.5.1
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import inspect

import torch
import torchattacks

model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10))
attack = torchattacks.AutoAttack(model, norm="Linf", eps=8 / 255, version="standard", n_classes=10)
steps = {type(member).__name__: getattr(member, "steps", None) for member in attack._autoattack.attacks}
queries = attack._autoattack.attacks[-1].n_queries
arguments = list(inspect.signature(torchattacks.AutoAttack).parameters)
print(f"steps of each member: {steps}; Square's queries: {queries}; arguments: {arguments}")
assert steps == {"APGD": 10, "APGDT": 10, "FAB": 10, "Square": None} and queries == 5000, "the behaviour has changed"
assert "steps" not in arguments, "the behaviour has changed: steps can be chosen"
PYTHON
