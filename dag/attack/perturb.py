"""The job `perturb`: perturbations of one source for one shard of an image set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from numpy.typing import NDArray
from torch import Tensor

from dag.attack.arithmetic import largest, perceptibility
from dag.attack.engine import Attack, AttackError, Problem, dense_adversaries
from dag.attack.ensemble import check_alike, ensemble_scores, together
from dag.attack.methods import Method, method_of, project, start
from dag.attack.own import own_attacks
from dag.attack.rules import NO_TARGETS, Rules, rules_of
from dag.attack.targets import Targets, detection_targets, segmentation_targets
from dag.data.classes import Match
from dag.data.image_sets import ImageError
from dag.data.readers import VOC_LAYOUT, Reader
from dag.data.truths import Objects, for_image_set, for_network, predicted
from dag.networks.interface import Detector, Network, Segmenter, background_column, objectness_of, rows_of
from dag.networks.layers.precision import arithmetic
from dag.networks.layers.upsampling import at_pixels, interpolation, sampled, transposed
from dag.workflow import store
from dag.workflow.names import OBJECTNESS, stage_iterations
from dag.workflow.overlap import ahead
from dag.workflow.seeds import generator

# Images that share a pass: fills a GPU; on a CPU more than one gains nothing.
BATCH = {"cpu": 1, "cuda": 8, "mps": 8}


def pixel_scores(network: Segmenter) -> Callable[[Tensor, list[Problem]], list[Tensor]]:
    """f for `dag.attack.engine`: scores (N, C) of the pixels `Problem.where`, y * W + x, from low-resolution scores."""
    products: dict = {}  # size of scores and image -> matrices of the interpolation
    matrices: WeakKeyDictionary = WeakKeyDictionary()  # problem -> sparse matrix of its pixels, and its transpose

    def scores(x: Tensor, problems: list[Problem]) -> list[Tensor]:
        low, size = network.body(x).to(x), tuple(x.shape[-2:])
        key = (*low.shape[1:], *size)
        if key not in products:
            products[key] = interpolation(network, low[:1].detach(), size)
        if products[key] is None:
            return [
                f.flatten(1).T[problem.where] for f, problem in zip(network.upsample(low, size), problems, strict=True)
            ]
        for problem in problems:
            if problem not in matrices:
                matrix = at_pixels(*products[key], problem.where)
                matrices[problem] = matrix, transposed(matrix)
        return [sampled(f, *matrices[problem]) for problem, f in zip(problems, low, strict=True)]

    return scores


def proposal_scores(network: Detector) -> Callable[[Tensor, list[Problem]], list[Tensor]]:
    """f for `dag.attack.engine`: scores (N, C) of the proposals `Problem.where`."""

    def scores(x: Tensor, problems: list[Problem]) -> list[Tensor]:
        proposals = [problem.where for problem in problems]
        return list(network.scores(network.features(x), proposals).split([len(one) for one in proposals]))

    return scores


def objectness_scores(network: Detector) -> Callable[[Tensor, list[Problem]], list[Tensor]]:
    """f for `dag.attack.engine`: (0, o) with the objectness logit o of the proposals `Problem.where`."""

    def scores(x: Tensor, problems: list[Problem]) -> list[Tensor]:
        proposals = [problem.where for problem in problems]
        logits = network.objectness(network.features(x), proposals)
        return list(torch.stack([torch.zeros_like(logits), logits], 1).split([len(one) for one in proposals]))

    return scores


def first_of(settings: dict) -> dict:
    """Settings that determine targets and start: with `worst_of`, those of its first attack."""
    return settings["worst_of"][0] if "worst_of" in settings else settings


def scores_of(network: Network, method: Method) -> Callable[[Tensor, list[Problem]], list[Tensor]]:
    """f for `dag.attack.engine`, of the scores that a method attacks."""
    if method.objective in OBJECTNESS:
        return objectness_scores(network)
    return pixel_scores(network) if network.task == "segmentation" else proposal_scores(network)


def problem_of(network: Network, image: Tensor, truth: Tensor | Objects, settings: dict, rng, name: str):
    """`Problem` and `Targets` of one image (3, H, W) with its true label map (H, W) or objects.

    Raises
    ------
    ValueError
        If the network does not know a class of the truth, or lacks the objectness that the method attacks.
    """
    settings = first_of(settings)
    method, rules = method_of(settings), rules_of(settings, network.task)
    if method.objective in OBJECTNESS:
        return objectness_problem(network, image, settings, method.objective, name)
    if network.task == "detection":
        return detection_problem(network, image, truth, settings, rules, rng, name)
    return segmentation_problem(network, image, truth, rules, rng, name, method.targets == "all")


def segmentation_problem(
    network: Segmenter, image: Tensor, label_map: Tensor, rules: Rules, rng, name: str, everything: bool = False
):
    """`Problem` and `Targets` of one image (3, H, W) with its true label map (H, W).

    Targets are foreground pixels, or `everything` that is not void.
    """
    background = rules.background or everything
    ground = network.classes.ground
    targets = segmentation_targets(label_map, network.labels, rules.labels, background, rng, ground).to(image.device)
    pixels = (targets.labels >= 0).nonzero().squeeze(1)
    return Problem(image, targets.labels[pixels], targets.adversarial[pixels], where=pixels, name=name), targets


def detection_problem(network: Detector, image: Tensor, objects: Objects, settings: dict, rules: Rules, rng, name):
    """`Problem` and `Targets` of one image (3, H, W) with its true objects, on proposals of the clean image."""
    targets = detection_targets(
        network,
        image[None],
        torch.from_numpy(objects.boxes).to(image.device),
        torch.from_numpy(objects.labels).to(image.device),
        nms=settings["nms"],
        limit=settings["limit"],
        overlap=settings["overlap"],
        confidence=settings["confidence"],
        rule=rules.labels,
        rng=rng,
    )
    found = targets.proposals
    return Problem(image, targets.labels, targets.adversarial, found.boxes, where=found, name=name), targets


@torch.no_grad()
def objectness_problem(network: Detector, image: Tensor, settings: dict, objective: str, name: str):
    """`Problem` and `Targets` of one image (3, H, W): all proposals of the clean image, whatever they show.

    Columns are those of `objectness_scores`: no object and an object.
    """
    features = network.features(image[None])
    proposals = network.propose(features, nms=settings["nms"], limit=settings["limit"])
    if objectness_of(network, features, proposals) is None:
        raise ValueError(
            f"its proposals have no objectness, which the objective {objective} attacks; choose another objective, or "
            "define objectness() of the network (dag/networks/interface.py)"
        )
    wanted = torch.full((len(proposals[0]),), OBJECTNESS[objective], device=image.device)
    targets = Targets(1 - wanted, wanted, proposals[0], available=len(wanted))
    problem = Problem(image, targets.labels, wanted, proposals[0].boxes, where=proposals[0], name=name)
    return problem, targets


def attacks(
    network: Network,
    problems: Iterable[Problem],
    settings: dict,
    batch: int = 1,
    device: str = "cpu",
    shares: Tensor | None = None,
    others: Sequence[Network] = (),
    readout: Callable | None = None,
) -> Iterator[tuple[Problem, Attack]]:
    """`dag.attack.engine.dense_adversaries` on a network with the settings of a source.

    The setting `function` names a custom attack, `perturbation` a folder of files, see `dag.attack.own`.

    `stages` are pairs (multiple of eps, share of the iterations) that are run in turn, each from the result of the one
    before (Croce et al., ECCV 2024); `worst_of` has the settings of several attacks, of which every image keeps the one
    that leaves the fewest targets correct (of equals, the first).

    With `others` the attack is on the sum of the losses of all these networks; the problems come from
    `dag.attack.ensemble.together`.

    With a `readout` the scores and columns are those of the readout; the problems come from
    `dag.attack.planted.planted`.

    With a `precision` below fp32 every attack continues in fp32 after its end: the last |T_m| is counted again, and
    an image with targets left gets its remaining steps.
    """
    if "worst_of" in settings:
        while together := list(islice(problems := iter(problems), batch)):
            found = [
                {
                    problem.name: attack
                    for problem, attack in attacks(network, together, each, batch, device, shares, readout=readout)
                }
                for each in settings["worst_of"]
            ]
            for problem in together:
                tried = [one[problem.name] for one in found]
                worst = min(tried, key=lambda attack: attack.left)
                yield problem, replace(worst, passes=_sum([attack.passes for attack in tried]))
        return
    detector, method = network.task == "detection", method_of(settings)
    scores = scores_of(network, method)
    if others:
        scores = ensemble_scores([scores_of(one, method) for one in (network, *others)])
    rules = rules_of(settings, network.task)
    if readout:
        scores, rules = readout(scores), replace(rules, strength=None)
    if "function" in settings or "perturbation" in settings:
        yield from own_attacks(network, problems, scores, settings, method, partial(arithmetic, "fp32", device))
        return
    run = partial(
        dense_adversaries,
        scores=scores,
        rules=rules,
        iterations=settings["iterations"],
        step=settings["step"],
        method=method,
        shares=shares,
        background=None if readout else background_column(network),
        probabilities=network.probabilities if detector else None,
        batch=batch,
        late=device == "cuda",
    )
    precision = settings.get("precision", "fp32")
    if precision != "fp32":
        rough = run(problems, arithmetic=partial(arithmetic, precision, device))
        problems = (replace(problem, start=attack, spent=1) for problem, attack in rough)
    exact = partial(arithmetic, "fp32", device)
    if "stages" not in settings:
        yield from run(problems, arithmetic=exact)
        return
    begun: dict[str, Problem] = {}
    for (multiple, _), steps in zip(settings["stages"], stage_iterations(settings), strict=True):
        stage = replace(method, eps=multiple * method.eps)
        problems = run(
            _from_there(problems, stage, begun),
            method=stage,
            iterations=steps,
            arithmetic=exact,
        )
    for problem, attack in problems:
        yield begun[problem.name], attack


def _from_there(problems: Iterable, method: Method, begun: dict[str, Problem]) -> Iterator[Problem]:
    """Problems that start from the result of the stage before, projected onto the budget of this one."""
    for item in problems:
        if isinstance(item, Problem):
            begun[item.name] = item
            yield item
        else:
            problem, attack = item
            first = project(attack.perturbation[0], problem.image, method)
            yield replace(problem, first=first, spent=attack.passes)


def _sum(passes: list[int | None]) -> int | None:
    return None if None in passes else sum(passes)


def perturb(
    network: Network,
    images: list[tuple[Path, str]],
    path: Path,
    *,
    settings: dict,
    seed: int,
    name: str,
    header: dict,
    reader: Reader = VOC_LAYOUT,
    match: Match | None = None,
    device: str = "cpu",
    others: Sequence[Network] = (),
    batch: int | None = None,
    pixels: Mapping[int, int] | None = None,
    progress: Callable[[Iterable, int], Iterable] = lambda items, total: items,
) -> None:
    """Attack every image of a shard and store the perturbations.

    Images of equal size share passes of the network, so they are attacked size by size.

    Parameters
    ----------
    network : Network
        The source.
    images : list of (root, image id)
        In the order of the image set.
    path : Path
        The shard to write.
    settings : dict
        Of the attack: rules, options, iterations, step, those of `dag.attack.methods.Method`, and for detection nms,
        limit, overlap, confidence; `draw` is the number of a repetition, with other labels and another start.
    seed, name
        Seed, with the image id, of the adversarial labels and the start: the same for every variant of the attack, so
        that variants differ in their method only.
    header : dict
        Identity of the shard, see `dag.workflow.store`.
    reader : Reader
        Of the image set.
    match : Match, optional
        Of the classes of the source and of the image set; by default both are the same.
    others : sequence of Network
        Further networks of an ensemble, see `dag.attack.ensemble`.
    batch : int, optional
        Images that share a pass, at most; by default that of `BATCH`.
    pixels : mapping of int to int, optional
        Pixels of every class id in the image set, for the objective "mce-bal".
    progress : callable
        Wraps an iterable of attacks; called with it and their number.
    """
    network, others = network.to(device), [one.to(device) for one in others]
    check_alike([network, *others])
    batch = BATCH[torch.device(device).type] if batch is None else batch
    method = method_of(first_of(settings))
    shares = None
    if pixels is not None:
        counts = torch.tensor([pixels.get(label, 0) for label in network.labels], dtype=torch.float64)
        shares = torch.where(counts > 0, 1 / counts, 0).float().to(device)
    again = [settings["draw"]] if "draw" in settings else []  # the first draw keeps the seeds of a single one
    # On a GPU an image is stored while the next ones are attacked; on a CPU it is stored before.
    overlapped = torch.device(device).type == "cuda"
    ids = [image_id for _, image_id in images]
    with store.writing(path, "perturbations", ids, header, keep=True) as shard, ThreadPoolExecutor(1) as writer:
        todo = [(root, image_id) for root, image_id in images if image_id not in shard.done]
        begun: dict[str, tuple[Problem, Targets]] = {}

        def size(image: tuple[Path, str]) -> tuple[int, int]:
            return reader.size(image)

        def problems(group: Iterable[tuple[Path, str]]) -> Iterator[Problem]:
            read = ((image[1], reader.image(image), reader.truth(network.task, image)) for image in group)
            for image_id, pixels, truth in ahead(read):
                image = torch.from_numpy(pixels).to(device)
                truth = truth_of(network, image, truth, match)

                def problem_for(one: Network, image=image, truth=truth, image_id=image_id) -> tuple[Problem, Targets]:
                    rng = generator("adversarial labels", seed, name, image_id, *again)
                    with arithmetic("fp32", image.device.type):
                        return problem_of(one, image, truth, settings, rng, image_id)

                try:
                    parts = [problem_for(one) for one in (network, *others)]
                    problem, targets = together(parts) if others else parts[0]
                except ValueError as error:
                    raise ImageError(f"{path}: {name} cannot attack image {image_id}: {error}") from error
                except torch.OutOfMemoryError as error:
                    raise ImageError(
                        f"{path}: {name} cannot attack image {image_id} ({_pixels(image)}): finding its targets does "
                        "not fit into the memory of the GPU; use one with more memory or fewer proposals"
                    ) from error
                except KeyboardInterrupt as interruption:
                    interruption.add_note(f"{name} was finding the targets of image {image_id} ({_pixels(image)})")
                    raise
                begun[image_id] = problem, targets
                drawn = int(generator("attack", seed, name, image_id, *again).integers(2**63))
                first = start(image, method, generator("start", seed, name, image_id, *again))
                yield replace(problem, seed=drawn, first=first if method.start != "zero" else None)

        def attacked() -> Iterator[tuple[Problem, Attack]]:
            for _, group in groupby(sorted(todo, key=size), size):
                yield from attacks(network, problems(group), settings, batch, torch.device(device).type, shares, others)

        stored = None
        try:
            for problem, attack in progress(attacked(), len(todo)):
                if stored is not None:
                    stored.result()
                _, targets = begun.pop(problem.name)
                r = attack.perturbation[0].float().cpu().numpy()
                attributes = {
                    "status": attack.status,
                    "iterations": attack.iterations,
                    "seed": seed,
                    "targets": targets.count,
                    "available": targets.available,
                    "start": attack.active[0] if attack.status != NO_TARGETS else 0,
                    "active": attack.active,
                    **({} if attack.passes is None else {"passes": attack.passes}),
                    "perceptibility": perceptibility(r),
                    "largest": largest(r),
                }
                stored = writer.submit(shard.put, problem.name, r, attributes)
                if not overlapped:
                    stored.result()
            if stored is not None:
                stored.result()
        except AttackError as error:
            raise ImageError(f"{path}: {name} cannot attack image {error}") from error
        except KeyboardInterrupt as interruption:
            for problem, _ in begun.values():
                interruption.add_note(f"{name} was attacking image {problem.name} ({_pixels(problem.image)})")
            raise


def truth_of(network: Network, image: Tensor, truth: NDArray | Objects | None, match: Match | None):
    """The attacked truth in ids of the network: label map (H, W), int64, or objects; by default its prediction."""
    if truth is None:
        truth = predicted(clean_prediction(network, image, match))
    if match is not None:
        truth = for_network(truth, match)
    return torch.from_numpy(truth).long() if network.task == "segmentation" else truth


def clean_prediction(network: Network, image: Tensor, match: Match | None) -> NDArray:
    """Prediction of a network on an image (3, H, W): label map (H, W) or detections (D, 6), in ids of the image set."""
    with torch.no_grad(), arithmetic("fp32", image.device.type):
        if network.task == "segmentation":
            found = network.label_map(image[None])[0].cpu().numpy()
        else:
            found = rows_of(network.detect(image[None])[0])
    return found if match is None else for_image_set(found, match)


def _pixels(image: Tensor) -> str:
    return "{} x {} pixels".format(*image.shape[-2:])
