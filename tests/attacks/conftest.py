"""What several test files of this folder share."""

import torch
import torch.nn.functional as F

from rsnn_zoo.models import ARCHITECTURES
from rsnn_zoo.neurons.modes import Rate, Surrogate, backward_mode

MODES = (Surrogate("pcw", 2.0), Rate())


def network(architecture, timesteps=3, img_size=8, **kwargs):
    torch.manual_seed(0)
    if architecture.startswith("vgg"):
        kwargs["hidden_features"] = 32
    model = ARCHITECTURES[architecture](
        num_classes=7,
        in_chans=2,
        img_size=img_size,
        timesteps=timesteps,
        threshold=0.4,
        mean=(0.4, 0.5),
        std=(0.2, 0.3),
        **kwargs,
    )
    with torch.no_grad():  # batch norms and residual weights that do something
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
        for name, parameter in model.named_parameters():
            if name.endswith("sum.weight"):
                parameter.copy_(torch.tensor([0.7, 0.4]))
    return model.eval()


def plain(model, images, labels, mode):
    images = images.clone().requires_grad_()
    with backward_mode(mode):
        logits = model(images)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), images)
    return gradient, logits.detach()
