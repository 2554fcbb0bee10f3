"""Two processes with half of each batch against one with all of it: real process groups (gloo), on the CPU."""

import itertools
import os
import socket
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from timm.layers import BatchNormAct2d

from rsnn_zoo.data.images import load_dataset
from rsnn_zoo.models import resnet20
from rsnn_zoo.models.distributed import Ranks, SyncedBatchNorm2d, parallel
from rsnn_zoo.models.layers import StaticBatchNorm2d
from rsnn_zoo.training.recipe import Stage
from rsnn_zoo.training.train import train

STAGE = Stage(
    objective="trades",
    weight=2.0,
    eps=0.1,
    attack_steps=2,
    epochs=2,
    batch_size=16,
    lr=0.05,
    threshold_lr=0.01,
    weight_decay=1e-3,
    clip=5.0,
    ema=0.5,
    validation_eps=0.1,
    validation_steps=2,
)


def work(rank, size, port, folder, function, *arguments):
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RSNN_ZOO_COMPILE": "0"}
    dist.init_process_group("gloo", rank=rank, world_size=size)
    torch.save(function(rank, folder, *arguments), folder / f"{rank}.pt")
    dist.destroy_process_group()


def on_two_ranks(folder, function, *arguments):
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    mp.spawn(work, (2, port, folder, function, *arguments), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def run(rank, folder, stage, timesteps):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = resnet20(in_chans=1, img_size=8, timesteps=timesteps, threshold=0.3, mean=(0.3,), std=(0.4,)).double()
    data, validation = load_dataset("digits", "train").select(48), load_dataset("digits", "validation").select(40)
    result = train(model, data, validation, stage, folder / "run", progress=False)
    return {"state": model.state_dict(), "history": result.history, "result": result.record["result"]}


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("timesteps", [None, 2])
@pytest.mark.parametrize("attack_pass", ["evaluation", "training", "free"])
def test_two_ranks_train_as_one(tmp_path, timesteps, accumulate, attack_pass):
    # an untrained SNN gives all images so nearly the same logits that the signs of PGD's first gradients are roundings
    stage = replace(STAGE, accumulate=accumulate, attack="rfgsm" if timesteps else "pgd")
    stage = replace(stage, **{"attack": "free"} if attack_pass == "free" else {"attack_pass": attack_pass})
    one = run(0, tmp_path / "one", stage, timesteps)
    first, second = on_two_ranks(tmp_path / "two", run, stage, timesteps)
    for key, value in one["state"].items():
        assert torch.equal(first["state"][key], second["state"][key]), key
        torch.testing.assert_close(first["state"][key], value, rtol=1e-7, atol=1e-9, msg=key)
    for mine, theirs in zip(one["history"], first["history"], strict=True):
        for key in ("train_loss", "train_clean", "train_robust", "validation", "validation_robust", "lr"):
            assert theirs[key] == pytest.approx(mine[key], rel=1e-7), key
    assert first["result"]["epoch"] == one["result"]["epoch"]


def norms(rank, folder, x):
    found = {}
    for kind in itertools.product((1, 3), (True, False)):
        copies, affine = kind
        torch.manual_seed(0)
        norm = StaticBatchNorm2d(5, copies).double()
        torch.nn.init.normal_(norm.weight)
        if not affine:
            norm.weight = norm.bias = None
        synced = SyncedBatchNorm2d(norm) if Ranks.current().size == 2 else norm
        share = Ranks.current().share(x)[0].clone().requires_grad_()
        for _ in range(2):
            y = synced(share)
        (gradient,) = torch.autograd.grad((y.sin() * 8).mean(), share)
        synced.eval()
        found[kind] = [y.detach(), gradient, norm.running_mean, norm.running_var, synced(share).detach()]
        found[kind].append(norm.num_batches_tracked)
    return found


@pytest.mark.slow
def test_a_synchronised_batch_norm_is_that_of_the_whole_batch(tmp_path):
    x = torch.randn(8, 5, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3 + 1
    whole = norms(0, None, x)
    halves = on_two_ranks(tmp_path / "two", norms, x)
    for kind, (y, gradient, mean, var, evaluated, tracked) in whole.items():
        first, second = (half[kind] for half in halves)
        torch.testing.assert_close(torch.cat([first[0], second[0]]), y)
        torch.testing.assert_close(torch.cat([first[1], second[1]]) / 2, gradient)  # each has the mean over its half
        torch.testing.assert_close(torch.cat([first[4], second[4]]), evaluated)
        for half in (first, second):
            torch.testing.assert_close(half[2], mean)
            torch.testing.assert_close(half[3], var)
            assert half[5] == tracked == 2


def test_a_norm_that_holds_an_activation_is_not_replaced():
    with pytest.raises(ValueError, match="cannot be synchronised"):
        parallel(torch.nn.Sequential(BatchNormAct2d(4)), Ranks(0, 2))


def test_shares_are_disjoint_and_cover_the_batch_part_by_part():
    whole = torch.arange(24)
    shares = [Ranks(rank, 3).share(whole, 2) for rank in range(3)]
    for part in range(2):
        assert torch.equal(torch.cat([share[part] for share in shares]), whole.chunk(2)[part])


def test_a_batch_that_cannot_be_divided_is_refused(tmp_path):
    with pytest.raises(ValueError, match="batch_size 16 cannot be divided among 1 processes in 3 parts"):
        run(0, tmp_path, replace(STAGE, accumulate=3), None)
