"""What a weight file stores of a network's training: mean and variance of the input of every batch normalisation.

Images like those of the training must give nearly the same, channel by channel.  Another normalisation of the image,
order of joined maps, epsilon or activation moves what lies behind it.
"""

import torch
from torch import nn


def normalisations(network: nn.Module) -> dict[str, nn.BatchNorm2d]:
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}


def compare(network: nn.Module, passes) -> dict[str, tuple[float, float]]:
    """For each normalisation the median over channels of |shift of the mean| / deviation and of the variances' ratio.

    `passes` is an iterable; taking an element of it runs the network, in evaluation mode and not folded, on an image.
    """
    norms = normalisations(network)
    moments = {name: [] for name in norms}
    for name, module in norms.items():
        module.register_forward_pre_hook(
            lambda _, inputs, found=moments[name]: found.append(
                torch.stack([inputs[0].mean((0, 2, 3)), inputs[0].square().mean((0, 2, 3))])
            )
        )
    for _ in passes:
        pass
    found = {}
    for name, module in norms.items():
        mean, square = torch.stack(moments[name]).mean(0)
        used = module.running_var > 1e-6  # some filters of small networks are dead
        shift = (mean - module.running_mean).abs() / module.running_var.sqrt()
        ratio = (square - mean.square()) / module.running_var
        found[name] = shift[used].median().item(), ratio[used].median().item()
    return found
