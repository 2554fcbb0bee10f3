"""A training script of timm's on a network of the zoo: new head, layer decay, averaged weights, checkpoints."""

import timm
import torch
from timm.models import load_checkpoint
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import CheckpointSaver, ModelEmaV3

import rsnn_zoo
from rsnn_zoo.hub.resolve import entries_folder
from tests.tiny import digits

NAME = "resnet20_digits_natural_t4"
ARGUMENTS = {"num_classes": 2, "drop_rate": 0.0, "drop_path_rate": 0.0, "global_pool": "avg", "bn_eps": 1e-5}


def test_a_training_script_of_timm_runs_on_a_zoo_model(monkeypatch, tmp_path):
    monkeypatch.setenv("RSNN_ZOO_COMPILE", "0")
    torch.manual_seed(0)
    data = digits("train")
    images, labels = data.pixels()[:128], (data.labels[:128] >= 5).long()

    model = timm.create_model(f"local-dir:{entries_folder() / NAME}", pretrained=True, **ARGUMENTS)
    model.set_grad_checkpointing()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=3e-3, weight_decay=0.05, layer_decay=0.75)
    scheduler = CosineLRScheduler(optimizer, t_initial=2)
    ema = ModelEmaV3(model, decay=0.8)
    saver = CheckpointSaver(model, optimizer, model_ema=ema, checkpoint_dir=tmp_path, recovery_dir=tmp_path)
    losses = []
    for epoch in range(2):
        model.train()
        for batch in torch.randperm(128).split(32):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            ema.update(model)
            losses.append(loss.item())
        scheduler.step(epoch + 1)
        saver.save_checkpoint(epoch, metric=-losses[-1])
    assert sum(losses[-3:]) < 0.75 * sum(losses[:3])
    assert (model.eval()(images).argmax(1) == labels).float().mean() > 0.8

    # later: the averaged weights come back; and the published network serves as a backbone
    again = timm.create_model(
        "rsnn_resnet20", timesteps=4, in_chans=1, img_size=8, initial=model.initial, reset=model.reset, **ARGUMENTS
    )
    load_checkpoint(again, str(tmp_path / "last.pth.tar"), use_ema=True)
    expected = ema.module.eval()(images)
    assert torch.equal(again.eval()(images), expected)
    backbone = timm.create_model(f"local-dir:{entries_folder() / NAME}", pretrained=True, features_only=True).eval()
    maps = backbone(images[:2])
    assert [y.shape[1] for y in maps] == backbone.feature_info.channels() == [16, 16, 32, 64]
    published = rsnn_zoo.create_model(NAME, pretrained=True)
    assert torch.allclose(published.fc(maps[-1].mean((2, 3))), published(images[:2]), atol=1e-4)
