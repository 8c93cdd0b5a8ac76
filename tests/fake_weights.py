"""Random weights of the full-size networks in the form in which the real ones are published.

Layers keep the scale of what passes through them, so that gradients reach the image; the scores of
the classes are of the order of 1, so that random detectors recognise something.
"""

from pathlib import Path

import torch
from test_caffemodel import V1_TYPES, blob_bytes, field
from torch import nn

from dag.networks.caffe import layers as caffe
from dag.networks.caffe.caffemodel import _modules

SCORES = ("score", "cls_score", "fc8", "fc1_voc12", "rfcn_cls")
BOXES = ("bbox_pred", "rfcn_bbox")


@torch.no_grad()
def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Fill all layers but the deconvolutions, whose bilinear weights are fixed."""
    torch.manual_seed(seed)
    for path, module in network.named_modules():
        name = path.rpartition(".")[2]
        if isinstance(module, nn.Conv2d | nn.Linear):
            inputs = module.weight[0].numel()
            last = any(part in name for part in SCORES)
            gain = 0.05 if last else 0.002 if any(part in name for part in BOXES) else 1.4
            module.weight.normal_(0, gain / inputs**0.5)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, caffe.Scale) and name.endswith("branch2c"):
            module.gamma.fill_(0.3)  # a residual branch adds little to what passes by: 33 blocks in a row stay finite
    return network


def write(network: nn.Module, path: Path, rename: dict | None = None, copies=lambda name: [name], v1=False) -> Path:
    """Write the layers of a network as a caffemodel, each under every name that `copies` gives it."""
    with open(path, "wb") as file:
        file.write(field(1, b"random weights"))
        for name, tensors in _modules(network, rename or {}).items():
            blobs = [blob_bytes(tensor.numpy(), legacy=v1) for tensor in tensors]
            for copy in copies(name):
                if v1:
                    layer = field(4, copy.encode()) + field(5, V1_TYPES["Convolution"])
                else:
                    layer = field(1, copy.encode()) + field(2, b"Convolution")
                layer += b"".join(field(6 if v1 else 7, blob) for blob in blobs)
                file.write(field(2 if v1 else 100, layer))
    return path
