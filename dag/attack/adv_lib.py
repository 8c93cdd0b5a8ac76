"""Attacks of adv-lib (https://github.com/jeromerony/adversarial-library) on segmentation, as custom attacks.

ALMA-prox, ASMA, PDGD and PDPGD look for the smallest perturbation under which a share of the targets is wrong,
instead of the most wrong targets within a budget.  The package is optional:

    pip install --no-deps adv-lib==0.2.8

Without its requirements: one of them, visdom, is used for plots alone and does not build
everywhere.  A variant says ``function: dag.attack.adv_lib:attack`` and names in `arguments` the attack, the version of
the package, which decides numbers, and further arguments of the attack.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from types import ModuleType

import torch
from torch import Tensor

from dag.networks.interface import Network

NAMES = ("alma_prox", "asma", "dag", "pdgd", "pdpgd")


def attack(
    network: Network,
    image: Tensor,
    scores: Callable[[Tensor], Tensor],
    labels: Tensor,
    *,
    name: str,
    version: str,
    **arguments: object,
) -> Tensor:
    """Perturb one image by an attack of adv-lib.

    The package sees a network whose label map is one row, the targets, so that proposals are attacked as pixels are.

    Parameters
    ----------
    network, image, scores, labels
        As of `dag.attack.own.own_attacks`.
    name : str
        One of `NAMES`.
    version : str
        Of the package, as it is installed.
    arguments
        Of the attack: ``num_steps=500``, ``adv_threshold=0.99``, ...  Lengths are those of the package, in which images
        reach from 0 to 1.

    Returns
    -------
    Tensor (1, 3, H, W)
        r in grey levels.

    Raises
    ------
    ValueError
        If the package is missing or of another version, or has no such attack.
    """
    function = _attacks(version).get(name)
    if function is None:
        raise ValueError(f"adv-lib has no attack {name!r} on segmentation; choose from {', '.join(NAMES)}")
    row = labels[None, None]

    def one_row(x: Tensor) -> Tensor:
        return scores(255 * x).T[None, :, None]

    with torch.compiler.set_stance("force_eager"):  # a compiler may be missing, and rounds differently
        found = function(one_row, image / 255, row, masks=torch.ones_like(row, dtype=torch.bool), **arguments)
    return (255 * found.detach()).clamp(0, 255) - image


def _attacks(version: str) -> dict[str, Callable]:
    """The attacks of the package by name."""
    if importlib.util.find_spec("adv_lib") is None:
        raise ValueError(f"adv-lib is not installed; run pip install --no-deps adv-lib=={version}")
    if (installed := metadata.version("adv-lib")) != version:
        raise ValueError(
            f"adv-lib {installed} is installed, `version` of the arguments says {version}; make them equal"
        )
    with without_plots(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from its comparison of versions
        module = importlib.import_module("adv_lib.attacks.segmentation")
    return {name: getattr(module, name) for name in NAMES}


@contextmanager
def without_plots() -> Iterator[None]:
    """Let the package import visdom if that is not installed; it is used by callbacks only."""
    if importlib.util.find_spec("visdom") is not None:
        yield
        return
    sys.modules["visdom"] = ModuleType("visdom")
    try:
        yield
    finally:
        del sys.modules["visdom"]
