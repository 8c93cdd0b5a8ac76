"""One image attacked from Python, without the workflow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import yaml
from numpy.typing import ArrayLike

from dag.attack.engine import Attack
from dag.attack.methods import method_of, start
from dag.attack.perturb import attacks, problem_of
from dag.data.truths import Objects
from dag.networks.interface import Network
from dag.workflow import configuration
from dag.workflow.seeds import generator

CONFIG = Path(__file__).parents[2] / "config"


def attack_image(
    network: Network,
    image: ArrayLike,
    truth: ArrayLike | Objects,
    attack: str | dict = "dag",
    *,
    eps: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    **settings: object,
) -> Attack:
    """Attack one image.

    Parameters
    ----------
    network : Network
        A segmenter or detector, e.g. of `dag.networks.building.build`.
    image : array_like (H, W, 3)
        RGB, 0..255, as read by PIL or imageio.
    truth : array_like of int (H, W), or Objects
        Label map, 255 = void; for a detector the objects (`dag.data.truths.Objects`).
    attack : str or dict
        "dag", the name of a variant of config/attacks.yaml or config/config.yaml ("segpgd-8"; "segpgd" if `eps` is
        given), or settings as in docs/attacks.md.
    eps : float, optional
        Radius of the budget in grey levels; the steps are then eps / 4.
    seed : int
        Of the adversarial labels and of a random start.
    device : str
    settings
        More settings, e.g. ``iterations=40``.

    Returns
    -------
    Attack
        `perturbation` (1, 3, H, W) in grey levels, `status`, and `active`, the targets left at every forward pass.

    Raises
    ------
    ValueError
        If the image or the attack is invalid, or settings contradict each other.
    """
    pixels = np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"image has the shape {pixels.shape}; give RGB as (height, width, 3)")
    if not np.issubdtype(pixels.dtype, np.number) or not (pixels.min() >= 0 and pixels.max() <= 255):
        raise ValueError("image has values outside 0..255; give grey levels, not 0..1 normalised ones")
    wanted = settings_of(attack, network.task, eps) | settings
    for key in ("ensemble", "worst_of"):
        if key in wanted:
            raise ValueError(f"attack {attack!r}: {key} is for the workflow; attack with one network and one attack")
    if problem := configuration.contradiction(wanted, network.task):
        raise ValueError(f"attack {attack!r}: {problem}")
    x, network = torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32)).to(device), network.to(device)
    method, rng = method_of(wanted), generator("adversarial labels", seed)
    if network.task == "segmentation":
        truth = torch.from_numpy(np.array(truth, np.int64))
        if tuple(truth.shape) != tuple(x.shape[1:]):
            raise ValueError(f"truth has the shape {tuple(truth.shape)}, the image {tuple(x.shape[1:])}")
    one, _ = problem_of(network, x, truth, wanted, rng, "the image")
    if method.start != "zero":
        one = replace(one, first=start(x, method, generator("start", seed)))
    ((_, found),) = attacks(network, [one], wanted, device=torch.device(device).type)
    return found


def settings_of(attack: str | dict, task: str, eps: float | None = None) -> dict:
    """Settings of a named attack on a task, with another budget if `eps` is given.

    Raises
    ------
    ValueError
        If there is no attack of that name.
    """
    files = [yaml.safe_load((CONFIG / name).read_text()) for name in ("config.yaml", "attacks.yaml")]
    variants = {name: entry for file in files for name, entry in file["variants"].items()}
    settings = dict(files[0]["attacks"][task])
    if isinstance(attack, dict):
        settings |= attack
    elif attack != "dag":
        name = attack if attack in variants or eps is None else f"{attack}-8"
        if name not in variants:
            raise ValueError(f"there is no attack {attack!r}; known are dag, {', '.join(sorted(variants))}")
        if "worst_of" in variants[name]:
            raise ValueError(f"{attack!r} is the worst of several attacks; attack with each of {variants[name]}")
        settings |= variants[name]
    if eps is not None:
        settings |= {"budget": settings.get("budget", "linf"), "eps": eps}
        if settings.get("steps", "max") != "max":
            settings |= {"step": eps / 4}
    return settings
