"""Precision of the arithmetic: the same on every device by default."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def arithmetic(precision: str, device: str) -> Iterator[None]:
    """Compute convolutions and matrix products in "fp32", "tf32" (NVIDIA's 10 bits of mantissa) or "bf16" (autocast).

    torch's own default is TF32 for convolutions on GPUs that support it.

    Parameters
    ----------
    precision : str
    device : str
        "cpu", "cuda" or "mps".
    """
    settings = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = [setting.fp32_precision for setting in settings]
    for setting in settings:
        setting.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value
