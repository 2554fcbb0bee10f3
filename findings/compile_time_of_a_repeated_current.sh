#!/usr/bin/env bash
# The compiler's time for an unrolled spiking neuron grows exponentially where all steps see one current.
#
# Version: torch 2.14.1 (CPU, inductor; needs a C++ compiler).
# An integrate-and-fire neuron over T steps, unrolled, returns its spikes and membranes. The first layer of a directly
# coded network sees the same current at every step: (1, N) in place of (T, N).
# Expected: compiling it takes about as long, since the arithmetic is the same and one tensor less is read.
# Seen: processor time of compilation for T = 8 and 10 is 6 s and 19 s with one row, and 2 s either way where the row is
# copied T times, so a few steps more make it minutes. No message says so. Each step is computed from the one row anew;
# rows of its own make it keep the membrane between.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy
TORCHINDUCTOR_CACHE_DIR="$folder/cache" "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import time

import torch


def fire(current, threshold, timesteps):
    spikes, membranes, v = [], [], 0.0
    for t in range(timesteps):
        u = v + current[t if current.shape[0] > 1 else 0]
        fired = u - threshold >= 0
        v = torch.where(fired, 0.0, u)
        spikes.append(torch.where(fired, 1.0, 0.0))
        membranes.append(u - threshold)
    return torch.stack(spikes), torch.stack(membranes)


def compile_time(timesteps, rows):
    torch._dynamo.reset()
    current = torch.rand(1, 10_000).repeat(rows, 1)
    began = time.process_time()
    torch.compile(fire, dynamic=True)(current, torch.tensor(1.0), timesteps)
    return time.process_time() - began


compile_time(2, 2)  # what the first compilation of a process takes besides
seconds = {(steps, rows): compile_time(steps, rows) for steps in (8, 10) for rows in (1, steps)}
for (steps, rows), took in seconds.items():
    print(f"T = {steps:2}, {rows:2} rows of currents: {took:5.1f} s")
grows = seconds[10, 1] / seconds[8, 1]
copied = seconds[10, 10] / seconds[8, 8]
print(f"two steps more take {grows:.1f} times as long with one row, {copied:.1f} times with a row for each step")
assert grows > 2 and copied < 2 and seconds[10, 1] > 3 * seconds[10, 10], "the behaviour has changed"
PYTHON
