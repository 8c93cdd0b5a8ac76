"""One job of the attack: the perturbations of one source for one shard of an image set."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from dag import store, voc
from dag.attack import NO_TARGETS, PRESETS, Attack, Rules, dense_adversary
from dag.networks.interface import Detector, Network, Segmenter
from dag.perturbation import generator, perceptibility
from dag.targets import Targets, detection_targets, segmentation_targets


def rules_of(settings: dict, task: str) -> Rules:
    """Rules of an attack's settings: the preset named by `rules`, with single points replaced by `options`."""
    preset = PRESETS[settings["rules"], task]
    options = dict(settings.get("options", {}))
    if options.get("strength") is not None:
        options["strength"] = tuple(options["strength"])
    return replace(preset, **options)


def attack_segmenter(
    network: Segmenter, image: Tensor, label_map: Tensor, settings: dict, rng
) -> tuple[Attack, Targets]:
    """Attack one image (1, 3, H, W) with its true label map (H, W)."""
    rules = rules_of(settings, "segmentation")
    targets = segmentation_targets(label_map, network.labels, rules.labels, rules.background, rng).to(image.device)

    def scores(x: Tensor) -> Tensor:
        return network(x)[0].flatten(1).T

    attack = dense_adversary(
        image,
        scores,
        targets.labels,
        targets.adversarial,
        rules=rules,
        iterations=settings["iterations"],
        step=settings["step"],
        background=network.labels.index(0),
    )
    return attack, targets


def attack_detector(
    network: Detector, image: Tensor, objects: voc.Objects, settings: dict, rng
) -> tuple[Attack, Targets]:
    """Attack one image (1, 3, H, W) with its true objects; the proposals of the clean image stay fixed."""
    rules = rules_of(settings, "detection")
    targets = detection_targets(
        network,
        image,
        torch.from_numpy(objects.boxes).to(image.device),
        torch.from_numpy(objects.labels).to(image.device),
        nms=settings["nms"],
        limit=settings["limit"],
        overlap=settings["overlap"],
        confidence=settings["confidence"],
        rule=rules.labels,
        rng=rng,
    )

    def scores(x: Tensor) -> Tensor:
        return network.scores(network.features(x), [targets.proposals])

    attack = dense_adversary(
        image,
        scores,
        targets.labels,
        targets.adversarial,
        rules=rules,
        iterations=settings["iterations"],
        step=settings["step"],
        background=network.labels.index(0) if 0 in network.labels else None,
        boxes=targets.proposals.boxes,
        probabilities=network.probabilities,
    )
    return attack, targets


def perturb(
    network: Network,
    images: list[tuple[Path, str]],
    path: Path,
    *,
    settings: dict,
    seed: int,
    name: str,
    header: dict,
    device: str = "cpu",
    progress: Callable[[Iterable], Iterable] = iter,
) -> None:
    """Attack every image of a shard and store the perturbations.

    Parameters
    ----------
    network : Network
        The source.
    images : list of (root, image id)
        In the order of the image set; `root` is the folder of one VOC year.
    path : Path
        The shard to write.
    settings : dict
        Of the attack: rules, options, iterations, step, and for detection nms, limit, overlap, confidence.
    seed, name
        With the image id they seed the adversarial labels: the same for every variant of the
        attack, so that variants differ by their rules alone.
    header : dict
        Identity of the shard, see `dag.store`.
    """
    network = network.to(device)
    with store.writing(path, "perturbations", [image_id for _, image_id in images], header) as shard:
        for root, image_id in progress(images):
            if image_id in shard.done:
                continue
            image = torch.from_numpy(voc.read_image(root, image_id))[None].to(device)
            rng = generator("adversarial labels", seed, name, image_id)
            try:
                if network.task == "segmentation":
                    truth = torch.from_numpy(voc.read_label_map(root, image_id)).long()
                    attack, targets = attack_segmenter(network, image, truth, settings, rng)
                else:
                    attack, targets = attack_detector(network, image, voc.read_objects(root, image_id), settings, rng)
            except ValueError as error:
                raise ValueError(f"{path}: image {image_id} cannot be attacked by {name}: {error}") from error
            r = attack.perturbation[0].float().cpu().numpy()
            attributes = {
                "status": attack.status,
                "iterations": attack.iterations,
                "seed": seed,
                "targets": targets.count,
                "available": targets.available,
                "start": attack.active[0] if attack.status != NO_TARGETS else 0,
                "active": attack.active,
                "perceptibility": perceptibility(r),
                "largest": float(abs(r).max()),
            }
            shard.put(image_id, r, attributes)
