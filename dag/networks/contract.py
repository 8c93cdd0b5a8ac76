"""Check that a custom network implements `dag.networks.interface`.

A few passes over one small image reveal mistakes as errors before the first attack, instead of as wrong numbers in a
table.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dag.data.classes import VOC, ClassList, listed
from dag.networks.interface import Detector, Proposals, Segmenter, is_stochastic, objectness_of

# Height and width of the test image: odd and different, to detect swapped axes and sizes that must be divisible.
SIZE = (67, 93)
LIMIT = 20  # number of proposals

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_OPTIONAL = {"objectness"}
_KINDS = {"segmentation": Segmenter, "detection": Detector}


class _Fault(Exception):
    """A violation of the interface; the message is prefixed with the name of the network."""


def check_interface(network: nn.Module, name: str, source: bool = True) -> None:
    """Reject a network that cannot be evaluated or, as a source, attacked.

    Any class with the attributes and methods of a `Segmenter` or a `Detector` is accepted.  The scores of a
    detector are checked only if it returns at least one proposal.

    Parameters
    ----------
    network : nn.Module
        In evaluation mode, on the CPU.
    name : str
        Name in error messages.
    source : bool
        Whether the network is a source of perturbations: its scores must be deterministic and have a gradient.

    Raises
    ------
    ValueError
        For the first violation found, with advice how to fix it.
    """
    try:
        with torch.random.fork_rng([]):
            _check(network, source)
    except _Fault as fault:
        raise ValueError(f"{name}: {fault}") from None
    except Exception as error:
        torch_itself = Path(torch.__file__).parent
        frames = traceback.extract_tb(error.__traceback__)
        where = [frame for frame in frames if not Path(frame.filename).is_relative_to(torch_itself)][-1]
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{name}: {reason} ({type(error).__name__} in {where.filename}, line {where.lineno}, shown an image of "
            f"{SIZE[0]} x {SIZE[1]} pixels); it must accept images of any size, see dag/networks/interface.py"
        ) from error


def _check(network: nn.Module, source: bool) -> None:
    kind = _KINDS.get(getattr(network, "task", None))
    if kind is None:
        raise _Fault("its task is neither 'segmentation' nor 'detection'; derive it from Segmenter or Detector")
    for method in (name for name, value in vars(kind).items() if inspect.isfunction(value) and name not in _OPTIONAL):
        if not callable(getattr(network, method, None)):
            raise _Fault(f"it has no method {method}(); define it, or derive the network from {kind.__name__}")
    classes = getattr(network, "classes", VOC)  # `build` sets them
    _check_labels(getattr(network, "labels", None), kind, classes)
    if source and is_stochastic(network):
        raise _Fault("it is random, so it is no source of perturbations; attack a deterministic version of the network")
    modes = [module.training for module in network.modules()]
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    if kind is Segmenter:
        _check_segmenter(network, source)
    else:
        _check_detector(network, classes, source)
    if [module.training for module in network.modules()] != modes:
        raise _Fault("a pass switches between training and evaluation; leave that to train() and eval()")
    for name, buffer in network.named_buffers():
        if name in buffers and not torch.equal(buffer, buffers[name]):
            raise _Fault(f"a pass changes its buffer {name}; nothing may be learnt in evaluation mode")


def _check_labels(labels: object, kind: type, classes: ClassList) -> None:
    last, least = len(classes.names) - 1, 2 if kind is Segmenter else 1
    if not isinstance(labels, Sequence) or not all(isinstance(label, int) and 0 <= label <= last for label in labels):
        raise _Fault(
            f"its labels are {labels!r}; give a tuple with the class id, 0..{last}, of every score column: the index "
            f"in the list ({listed(classes)}) that `classes` of its entry names"
        )
    if len(labels) < least or len(set(labels)) < len(labels):
        raise _Fault(f"its labels are {labels!r}; give at least {least} class ids, none of them twice")
    if kind is Segmenter and classes.ground not in (None, *labels):
        raise _Fault(f"its labels are {labels!r}; a segmenter needs a score column for background, {classes.ground}")


def _check_segmenter(network: nn.Module, source: bool) -> None:
    columns, image = len(network.labels), _image()
    with torch.no_grad():
        low = _seeded(network).body(image)
        _check_untouched(image, "body(images)")
        _check_tensor("body(images)", low, (1, columns, None, None))
        whole = network.upsample(low, SIZE)
        _check_tensor("upsample(scores, (H, W))", whole, (1, columns, *SIZE))
        other = torch.randn(low.shape, generator=torch.Generator().manual_seed(1)).to(low) * low.abs().max()
        if not _close(network.upsample(2 * low - 3 * other, SIZE), 2 * whole - 3 * network.upsample(other, SIZE)):
            raise _Fault("upsample() is not linear in the scores; move everything else into body()")
        scores = _seeded(network)(image)
        _check_tensor("network(images)", scores, whole.shape)
        label_map = _seeded(network).label_map(image)
        _check_untouched(image, "label_map(images)")
    _check_tensor("label_map(images)", label_map, (1, *SIZE), torch.uint8)
    unknown = sorted(set(label_map.unique().tolist()) - set(network.labels))
    if unknown:
        raise _Fault(f"label_map(images) holds {unknown}, not in its labels; it must hold class ids, not columns")
    _check_scores("network(images)", network, network, scores, source)
    if not _close(whole, scores):
        raise _Fault("network(images) is not upsample(body(images), (H, W)); leave forward() as Segmenter has it")


def _check_detector(network: nn.Module, classes: ClassList, source: bool) -> None:
    columns, image = len(network.labels), _image()
    with torch.no_grad():
        features = _seeded(network).features(image)
        _check_untouched(image, "features(images)")
        proposals = network.propose(features, nms=0.9, limit=LIMIT)
        if not isinstance(proposals, list) or len(proposals) != 1 or not isinstance(proposals[0], Proposals):
            raise _Fault("propose() does not return a list with one Proposals per image")
        _check_proposals(proposals[0])
        count = len(proposals[0])
        scores = network.scores(features, proposals) if count else None
    if count:
        _check_tensor("scores()", scores, (count, columns))
        _check_scores(
            "scores()", network, lambda images: network.scores(network.features(images), proposals), scores, source
        )
        with torch.no_grad():
            rows = torch.arange(0, count, 2)
            if not _close(network.scores(features, [proposals[0][rows]]), scores[rows]):
                raise _Fault("scores() of a proposal depend on the other proposals; score every proposal independently")
            _check_shares("probabilities()", network.probabilities(scores), scores.shape)
            _check_shares("confidence()", network.confidence(features, proposals), scores.shape)
            if (objectness := objectness_of(network, features, proposals)) is not None:
                _check_tensor("objectness()", objectness, (count,))
    with torch.no_grad():
        detections = network.detect(image)
    _check_untouched(image, "detect(images)")
    _check_detections(detections, set(network.labels) - {classes.ground})


def _check_proposals(proposals: Proposals) -> None:
    boxes, index = proposals.boxes, proposals.index
    _check_tensor("boxes of propose()", boxes, (None, 4), torch.float32)
    if index is not None:
        _check_tensor("index of propose()", index, (len(boxes),), torch.int64)
    if len(boxes) > LIMIT:
        raise _Fault(f"propose() returns {len(boxes)} proposals for limit={LIMIT}; it must return only the best")
    height, width = SIZE
    wrong = (boxes < 0) | (boxes > boxes.new_tensor([width, height, width, height])) | (boxes[:, [2, 3, 2, 3]] < boxes)
    wrong = boxes if len(boxes) and boxes.max() <= 1 else boxes[wrong.any(1)]  # relative coordinates are inside too
    if len(wrong):
        box = tuple(round(edge, 2) for edge in wrong[0].tolist())
        raise _Fault(
            f"propose() returns the box {box} for an image of width {width} and height {height}; it must return "
            "(x_min, y_min, x_max, y_max) in pixels of the image, clipped to it"
        )


def _check_detections(detections: object, foreground: set[int]) -> None:
    if not isinstance(detections, list) or len(detections) != 1:
        raise _Fault("detect() does not return a list with one Detections per image")
    found = detections[0]
    _check_tensor("boxes of detect()", found.boxes, (None, 4))
    _check_tensor("labels of detect()", found.labels, (len(found.boxes),), torch.int64)
    _check_shares("scores of detect()", found.scores, (len(found.boxes),))
    unknown = sorted(set(found.labels.tolist()) - foreground)
    if unknown:
        raise _Fault(
            f"detect() finds {unknown}, not in its labels without background; it must return class ids, not columns"
        )
    if (found.scores.diff() > 0).any():
        raise _Fault("detect() does not return the best score first; sort its detections")


def _check_scores(
    what: str, network: nn.Module, function: Callable[[Tensor], Tensor], scores: Tensor, source: bool
) -> None:
    """Reject scores f(X, t), classes in dimension 1, that are probabilities, vary or, for a source, lack a gradient."""
    if scores.min() >= 0 and (scores.sum(1) - 1).abs().max() < 1e-3:
        raise _Fault(f"{what} are probabilities; return the scores before softmax")
    images = _image().requires_grad_(source)
    _seeded(network)
    with torch.set_grad_enabled(source):
        values = function(images)
    if not _close(values, scores):
        raise _Fault(
            f"{what} differs from pass to pass with the same torch.manual_seed(); draw random numbers with torch"
            if is_stochastic(network)
            else f"{what} differs from pass to pass; random layers, like dropout, must be off in evaluation mode, or "
            "the network says `stochastic = True`"
        )
    if not source:
        return
    gradient = None
    if values.requires_grad:
        weights = torch.randn(values.shape, generator=torch.Generator().manual_seed(2)).to(values)
        (gradient,) = torch.autograd.grad((values * weights).sum(), images, allow_unused=True)
    if gradient is None or not gradient.any():
        raise _Fault(
            f"{what} has no gradient to the images, which a source needs; compute it in torch, without detach, no_grad "
            "or rounding"
        )
    if not torch.isfinite(gradient).all():
        raise _Fault(f"the gradient of {what} is not finite; avoid roots and logarithms at 0 and divisions by 0")


def _seeded(network: nn.Module) -> nn.Module:
    """Return the network after seeding the generator if it is declared stochastic."""
    if is_stochastic(network):
        torch.default_generator.manual_seed(0)
    return network


def _check_tensor(what: str, value: object, shape: Sequence[int | None], *dtypes: torch.dtype) -> None:
    """Require a finite tensor of this shape (None: any length) and of one of these types (default: any float)."""
    if not isinstance(value, Tensor):
        raise _Fault(f"{what} is a {type(value).__name__}; return a tensor")
    if len(shape) != value.dim() or any(
        want not in (None, have) for want, have in zip(shape, value.shape, strict=True)
    ):
        wanted = ", ".join("any" if length is None else str(length) for length in shape)
        raise _Fault(
            f"{what} has the shape {tuple(value.shape)} for an image of height {SIZE[0]} and width {SIZE[1]}; "
            f"it must be ({wanted})"
        )
    if value.dtype not in (dtypes or _FLOATS):
        raise _Fault(f"{what} is {value.dtype}; return {dtypes[0] if dtypes else 'floats'}")
    if not torch.isfinite(value).all():
        raise _Fault(f"{what} has values that are not finite; look for divisions by 0 and for missing weights")


def _check_shares(what: str, value: Tensor, shape: Sequence[int]) -> None:
    _check_tensor(what, value, shape)
    beyond = value[(value < 0) | (value > 1)]
    if len(beyond):
        raise _Fault(f"{what} holds {beyond[0].item():.3g}; return numbers from 0 to 1")


def _check_untouched(image: Tensor, what: str) -> None:
    if not torch.equal(image, _image()):
        raise _Fault(f"{what} changes the images in place; write x = x - mean, not x -= mean")


def _close(one: Tensor, other: Tensor) -> bool:
    """Whether both are equal up to rounding, relative to the largest value."""
    return one.shape == other.shape and bool((one - other).abs().max() <= 1e-3 * other.abs().max())


def _image() -> Tensor:
    """The test image (1, 3, H, W): a gradient, rectangles and noise."""
    generator, (height, width) = torch.Generator().manual_seed(0), SIZE
    image = torch.linspace(40, 160, height)[:, None] + torch.linspace(0, 60, width)
    image = image.expand(1, 3, height, width).clone()
    for top, left, bottom, right in ((8, 6, 40, 44), (30, 52, 62, 88), (12, 60, 24, 80), (48, 10, 60, 34)):
        image[:, :, top:bottom, left:right] = 255 * torch.rand(1, 3, 1, 1, generator=generator)
    return (image + 10 * torch.randn(image.shape, generator=generator)).clamp(0, 255)
