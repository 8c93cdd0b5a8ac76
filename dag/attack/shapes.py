"""Shaped examples: an image whose segmentation becomes a chosen map (paper, section 3.4 and Figure 2).

The same attack with other targets: all pixels are targets, the adversarial label l'_n is the label in the wanted map,
and a pixel is active while its prediction differs from it.  Started from a natural image this gives an adversarial
image, started from uniform noise a fooling image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dag.attack.arithmetic import apply, perceptibility
from dag.attack.engine import Attack, AttackError, Problem, dense_adversaries
from dag.attack.perturb import pixel_scores
from dag.attack.rules import Rules
from dag.networks.interface import Segmenter
from dag.networks.layers.precision import arithmetic
from dag.workflow import store
from dag.workflow.seeds import generator

KIND = "shapes"


def wanted_map(shape: str, height: int, width: int, label: int, size: float = 0.6, ground: int = 0) -> NDArray:
    """A label map with one shape on background or on another class.

    Parameters
    ----------
    shape : str
        "circle" or "square", in the middle of the image, or "strips": four vertical ones, every
        second of nine bands of equal width.
    height, width : int
        H and W of the image.
    label : int
        Class id of the shape.
    size : float
        Diameter of the circle and side of the square as a share of the shorter side, in (0, 1]; unused for
        strips.
    ground : int
        Class id around the shape.

    Returns
    -------
    ndarray, uint8 (H, W)

    Raises
    ------
    ValueError
        If the shape is unknown or the size out of range.
    """
    if not 0 < size <= 1:
        raise ValueError(f"size {size} of a shape is not in (0, 1]; give a share of the shorter side")
    y, x = np.ogrid[:height, :width]
    across, down = np.abs(2 * x - (width - 1)), np.abs(2 * y - (height - 1))  # in half pixels from the centre
    extent = size * min(height, width)
    if shape == "circle":
        inside = across**2 + down**2 <= extent**2
    elif shape == "square":
        inside = np.maximum(across, down) <= extent
    elif shape == "strips":
        inside = (9 * x // width % 2 == 1) & (y >= 0)
    else:
        raise ValueError(f"shape {shape!r} is unknown; choose circle, square or strips")
    return np.where(inside, label, ground).astype(np.uint8)


def noise(height: int, width: int, seed: int) -> NDArray:
    """An image without content: independent uniform values in [0, 255), float32 (3, H, W)."""
    return generator("fooling image", seed).uniform(0, 255, (3, height, width)).astype(np.float32)


def reach(
    network: Segmenter,
    image: NDArray,
    wanted: NDArray,
    *,
    iterations: int,
    step: float,
    stop: float,
    name: str,
    device: str = "cpu",
) -> Attack:
    """Attack an image until the network labels it as wanted.

    The rules are those of the authors' demo: the current prediction of a pixel is pushed down, background pixels
    are targets like all others, and the attack ends when at most the share `stop` of all pixels differs from the wanted
    map.

    Parameters
    ----------
    network : Segmenter
    image : ndarray, float32 (3, H, W)
        In [0, 255].
    wanted : ndarray, uint8 (H, W)
        Class ids.
    iterations, step : int, float
        M_0 and gamma (grey levels), as of `dag.attack.engine.dense_adversaries`.
    stop : float
        In [0, 1].
    name : str
        Name of the image in messages.
    device : str
        Device of the network.

    Raises
    ------
    ValueError
        If the network does not know a class of the wanted map.
    """
    names = network.classes.names
    unknown = sorted({names[label] for label in np.unique(wanted) if label not in network.labels})
    if unknown:
        known = ", ".join(names[label] for label in network.labels)
        raise ValueError(f"{name}: the network does not know the class {unknown[0]}; choose one of {known}")
    columns = np.zeros(256, np.int64)
    columns[list(network.labels)] = np.arange(len(network.labels))
    adversarial = torch.from_numpy(columns[wanted.ravel()]).to(device)
    # l_n is unused: the prediction is pushed down
    problem = Problem(
        torch.from_numpy(image).to(device),
        torch.zeros_like(adversarial),
        adversarial,
        where=torch.arange(len(adversarial), device=device),
        name=name,
    )
    ((_, attack),) = dense_adversaries(
        [problem],
        pixel_scores(network),
        rules=Rules(active="unreached", suppress="prediction", background=True, stop=stop),
        iterations=iterations,
        step=step,
        arithmetic=partial(arithmetic, "fp32", torch.device(device).type),
    )
    return attack


def shape(
    network: Segmenter,
    starts: Mapping[str, NDArray],
    shapes: Mapping[str, str],
    path: Path,
    *,
    settings: Mapping,
    header: dict,
    device: str = "cpu",
    progress: Callable[[list], Iterable] = iter,
) -> None:
    """Attack every start image towards every shape and store the results.

    Parameters
    ----------
    network : Segmenter
    starts : mapping
        Images (3, H, W) by name.
    shapes : mapping
        {shape: name of its class}.
    path : Path
        The shard to write.  An example has five entries, "{start}.{shape}.{part}": image and perturbation,
        float32 (3, H, W), and wanted, before and after, uint8 (H, W), the predictions of the clean and of the
        truncated perturbed image.  Attributes of all five: start, shape, class, status, iterations, active (|T_m| at
        every forward pass), reached_before, reached (shares of the pixels with the wanted label),
        perceptibility, largest.
    settings : mapping
        iterations, step and stop of `reach`, size of `wanted_map`, and ground, the name of the class around the shapes,
        if that is not background.
    header : dict
        Identity of the shard, see `dag.workflow.store`.
    progress : callable
        Wraps the list of examples.
    """
    network, classes = network.to(device), network.classes
    ground = classes.find(settings["ground"]) if "ground" in settings else classes.ground
    examples = [(start, name) for start in starts for name in shapes]
    parts = ("image", "wanted", "perturbation", "before", "after")
    ids = [f"{start}.{name}.{part}" for start, name in examples for part in parts]
    with store.writing(path, KIND, ids, header) as shard:
        for start, name in progress(examples):
            entries = [f"{start}.{name}.{part}" for part in parts]
            if shard.done.issuperset(entries):
                continue
            image, label = starts[start], classes.find(shapes[name])
            wanted = wanted_map(name, *image.shape[1:], label, settings["size"], ground)
            known = {key: settings[key] for key in ("iterations", "step", "stop")}
            try:
                attack = reach(network, image, wanted, name=f"{name} on {start}", device=device, **known)
            except AttackError as error:
                raise ValueError(f"{path}: {error}") from error
            r = attack.perturbation[0].float().cpu().numpy()
            before, after = (_label_map(network, seen, device) for seen in (image, apply(image, r, "float")))
            attributes = {
                "start": start,
                "shape": name,
                "class": shapes[name],
                "status": attack.status,
                "iterations": attack.iterations,
                "active": attack.active,
                "reached_before": float((before == wanted).mean()),
                "reached": float((after == wanted).mean()),
                "perceptibility": perceptibility(r),
                "largest": float(abs(r).max()),
            }
            for entry, array in zip(entries, (image, wanted, r, before, after), strict=True):
                if entry not in shard.done:
                    shard.put(entry, array, attributes)


def _label_map(network: Segmenter, image: NDArray, device: str) -> NDArray:
    with arithmetic("fp32", torch.device(device).type):
        return network.label_map(torch.from_numpy(image)[None].to(device))[0].cpu().numpy()
