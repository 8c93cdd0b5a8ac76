"""Single-stage detectors (YOLO), imported from a Darknet cfg file and its weights.

Redmon and Farhadi, "YOLOv3: An Incremental Improvement", 2018.  A layer of the cfg may read any
earlier layer, so the network is a list of steps that is followed in order.  Batch normalisation
is folded into the convolutions when the file is read (in float64; epsilon 1e-6: dead channels
have a variance of almost 0, and with the usual 1e-5 the output is off by 0.06).

f(X, t) is the vector of class logits at an anchor, without a background column, and objectness is
left alone by the attack.  A background score made from objectness lets the attack stop while the
true class is still the best one at about half of the targets; the ranking within a class, which
is all that average precision sees, then survives: two to five times as much mAP remained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dag.networks.interface import Detections, Detector, Proposals
from dag.networks.layers import operators
from dag.networks.layers.boxes import clip

_EPSILON = 1e-6

_ACTIVATIONS = {
    "linear": nn.Identity,
    "relu": partial(nn.ReLU, inplace=True),
    "relu6": partial(nn.ReLU6, inplace=True),
    "leaky": partial(nn.LeakyReLU, 0.1, inplace=True),
}

# Everything that a section may say; an option that is not listed could change the output unnoticed.
_OPTIONS = {
    "convolutional": "batch_normalize filters size stride pad padding groups activation",
    "shortcut": "from activation",
    "route": "layers",
    "upsample": "stride",
    "maxpool": "size stride padding",
    "dropout": "probability",
    "yolo": "mask anchors classes num scale_x_y nms_kind beta_nms "
    "jitter ignore_thresh truth_thresh random iou_thresh cls_normalizer iou_normalizer iou_loss max",
}


@dataclass(frozen=True)
class Features:
    """Raw output of one pass.

    Attributes
    ----------
    rows : Tensor (B, A, 5 + C)
        Per anchor t_x, t_y, t_w, t_h, objectness logit, class logits (YOLOv3, section 2.1).
        Anchors run over the heads in the order of the cfg, and within a head over (anchor of the
        mask, y, x).
    size : tuple of int
        (H, W) of the images.
    """

    rows: Tensor
    size: tuple[int, int]


def yolo(
    cfg: Path,
    weights: Path,
    labels: Iterable[int] = range(1, 21),
    score_threshold: float = 0.005,
    nms: float = 0.45,
) -> Detector:
    """The network of a Darknet cfg file with at least one [yolo] layer.

    Parameters
    ----------
    cfg, weights : Path
    labels : iterable of int
        VOC class ids of the class columns; the default is right for weights trained on VOC.
    score_threshold : float
        `detect` reports every class whose objectness x probability exceeds it.  0.005 is what
        Darknet itself uses to measure mAP (0.25 and 0.5 are for display): average precision ranks
        all detections, and cutting at 0.2 costs 3 to 5 points (VOC samples).  Results depend
        on it, so it belongs beside every mAP.
    nms : float
        IoU above which `detect` suppresses boxes of the same class.

    Raises
    ------
    ValueError
        If the cfg has a layer or an option that is not known here, or the weights do not fit it.
    """
    return _Yolo(Path(cfg), Path(weights), tuple(labels), score_threshold, nms)


class _Yolo(Detector):
    """The image is squeezed to the size of the cfg, whatever its shape, as Darknet does."""

    def __init__(self, cfg: Path, weights: Path, labels: tuple[int, ...], score_threshold: float, nms: float):
        super().__init__()
        self.labels, self.score_threshold, self.nms = labels, score_threshold, nms
        (_, net), *sections = read_cfg(cfg)
        numbers = read_weights(weights)
        self.convolutions = nn.ModuleList()
        self.steps = []  # per layer: function, numbers of the layers that it reads (-1: the image)
        self.heads = []  # numbers of the [yolo] layers
        anchors = []
        where = "[net]"
        try:
            if _integer(net, "channels", 3) != 3:
                raise ValueError("the images must have 3 channels")
            self.frame = (_integer(net, "height"), _integer(net, "width"))
            # A blank image goes through every layer as it is made: torch works out the shapes.
            values = {-1: torch.zeros(1, 3, *self.frame)}
            for number, (kind, options) in enumerate(sections):
                where = f"layer {number} [{kind}]"
                sources = _sources(kind, options, number)
                if kind == "convolutional":
                    function, numbers = _convolution(options, values[number - 1].shape[1], numbers, weights)
                    self.convolutions.append(function)
                else:
                    function = _function(kind, options)
                if kind == "yolo":
                    self.heads.append(number)
                    anchors.append(_anchors(options, values[number - 1].shape[1:], self.frame, len(labels)))
                self.steps.append((function, sources))
                with torch.no_grad():
                    values[number] = function(*(values[source] for source in sources))
        except (ValueError, IndexError, RuntimeError) as error:  # the latter from torch: shapes that do not fit
            reason = str(error).splitlines()[0]
            raise ValueError(f"{cfg}, {where}: {reason}") from error
        if not anchors:
            raise ValueError(f"{cfg}: there is no [yolo] layer; give the cfg of a detector")
        if len(numbers):
            raise ValueError(f"{weights}: {len(numbers)} numbers too many for {cfg.name}; give the weights made for it")
        for name, parts in zip(("grid", "cell", "anchor", "stretch"), zip(*anchors, strict=True), strict=True):
            self.register_buffer(name, torch.cat(parts))

    def maps(self, images: Tensor) -> list[Tensor]:
        """Raw maps (B, anchors * (5 + C), h, w) of the heads, in the order of the cfg."""
        if images.shape[-2:] != self.frame:
            images = F.interpolate(images, self.frame, mode="bilinear", align_corners=False)
        values = {-1: images / 255}
        for number, (function, sources) in enumerate(self.steps):
            values[number] = function(*(values[source] for source in sources))
        return [values[head] for head in self.heads]

    def features(self, images: Tensor) -> Features:
        rows = [_rows(map_, 5 + len(self.labels)) for map_ in self.maps(images)]
        return Features(torch.cat(rows, 1), tuple(images.shape[-2:]))

    @torch.no_grad()
    def propose(self, features: Features, *, nms: float, limit: int) -> list[Proposals]:
        """Decoded anchor boxes ranked by objectness x best class probability, all classes together."""
        proposals = []
        for rows in features.rows:
            boxes = self._boxes(rows, features.size)
            kept = operators.nms(boxes, _confidence(rows).amax(1), nms)[:limit]
            proposals.append(Proposals(clip(boxes[kept], features.size).float(), kept))
        return proposals

    def scores(self, features: Features, proposals: list[Proposals]) -> Tensor:
        """Class logits (R, C) at the anchors of the proposals."""
        return _at(features, proposals)[:, 5:]

    def probabilities(self, scores: Tensor) -> Tensor:
        """Independent probabilities (R, C): rows need not sum to 1."""
        return scores.sigmoid()

    def confidence(self, features: Features, proposals: list[Proposals]) -> Tensor:
        """Objectness x class probability, (R, C)."""
        return _confidence(_at(features, proposals))

    @torch.no_grad()
    def detect(self, images: Tensor) -> list[Detections]:
        """Every class above `score_threshold` of every anchor, after suppression within its class."""
        features = self.features(images)
        labels = torch.tensor(self.labels, device=images.device)
        detections = []
        for rows in features.rows:
            confidence = _confidence(rows)
            anchors, columns = (confidence > self.score_threshold).nonzero(as_tuple=True)
            boxes, scores = self._boxes(rows, features.size)[anchors], confidence[anchors, columns]
            kept = operators.class_nms(boxes, scores, columns, self.nms)
            boxes = clip(boxes[kept], features.size).float()
            detections.append(Detections(boxes, labels[columns[kept]], scores[kept].float()))
        return detections

    def _boxes(self, rows: Tensor, size: tuple[int, int]) -> Tensor:
        """Boxes (A, 4) of all anchors `rows` (A, 5 + C), in the frame of an image of `size`, not clipped.

        YOLOv3, section 2.1; `scale_x_y` stretches the sigmoid about its middle, so that a centre
        can reach the border of its cell.  The networks were trained on edges of 0-based VOC boxes
        divided by the size of the image, so no pixel is added or taken away.
        """
        centre = ((rows[:, :2].sigmoid() - 0.5) * self.stretch + 0.5 + self.grid) * self.cell
        reach = rows[:, 2:4].exp() * self.anchor / 2
        height, width = size
        return torch.cat([centre - reach, centre + reach], 1) * rows.new_tensor([width, height, width, height])


def read_cfg(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Sections (name, options) of a Darknet cfg file; the first one is [net].

    Raises
    ------
    ValueError
        If the file is not a cfg file, or says the same option twice in a section.
    """
    sections = []
    for number, line in enumerate(Path(path).read_text(errors="replace").splitlines(), 1):
        line = line.split("#")[0].split(";")[0].strip()
        name, equals, value = (part.strip() for part in line.partition("="))
        if line.startswith("[") and line.endswith("]"):
            sections.append((line[1:-1].strip(), {}))
        elif line and (not sections or not equals or name in sections[-1][1]):
            raise ValueError(f"{path}, line {number}: {line[:40]!r} is not expected here; give a Darknet cfg file")
        elif line:
            sections[-1][1][name] = value
    if not sections or sections[0][0] not in ("net", "network"):
        raise ValueError(f"{path}: the first section is not [net]; give a Darknet cfg file")
    return sections


def read_weights(path: Path) -> np.ndarray:
    """All numbers of a Darknet weights file in the order of the file, float32 (K,).

    The header is the version (three int32) and the number of images seen in training, 8 bytes
    from version 0.2 on and 4 bytes before.

    Raises
    ------
    ValueError
        If the file is too short for its header or not a whole number of float32.
    """
    data = Path(path).read_bytes()
    major, minor = np.frombuffer(data[:8].ljust(8, b"\0"), "<i4").tolist()
    header = 20 if 10 * major + minor >= 2 else 16
    if len(data) < header or (len(data) - header) % 4:
        raise ValueError(f"{path}: {len(data)} bytes are no header and whole numbers; download the weights again")
    return np.frombuffer(data, "<f4", offset=header)


def _sources(kind: str, options: dict[str, str], number: int) -> tuple[int, ...]:
    """Numbers of the layers that layer `number` reads; in the cfg, negative ones count from it."""
    if kind not in _OPTIONS:
        raise ValueError(f"this kind of layer is not supported; known are {', '.join(_OPTIONS)}")
    unknown = sorted(set(options) - set(_OPTIONS[kind].split()))
    if unknown:
        raise ValueError(f"option {unknown[0]} is not supported")
    if kind == "route":
        sources = _numbers(options, "layers", int)
    elif kind == "shortcut":
        sources = [-1, *_numbers(options, "from", int)]
    else:
        sources = [-1]
    sources = tuple(source if source >= 0 else number + source for source in sources)
    if not all(-1 <= source < number for source in sources) or (kind == "route" and -1 in sources):
        raise ValueError("it reads a layer that does not come before it")
    return sources


def _function(kind: str, options: dict[str, str]) -> Callable[..., Tensor]:
    """What a layer without weights does to the outputs of its sources."""
    if kind == "route":
        return _concatenate
    if kind == "shortcut":
        if options.get("activation", "linear") != "linear":
            raise ValueError(f"activation {options['activation']} is not supported")
        return _add
    if kind == "upsample":
        return partial(F.interpolate, scale_factor=_integer(options, "stride", 2), mode="nearest")
    if kind == "maxpool":
        stride = _integer(options, "stride", 1)
        size = _integer(options, "size", stride)
        return partial(_max_pool, size=size, stride=stride, padding=_integer(options, "padding", size - 1))
    return _same  # dropout, yolo


def _convolution(
    options: dict[str, str], channels: int, numbers: np.ndarray, weights: Path
) -> tuple[nn.Module, np.ndarray]:
    """A convolution with its weights, taken from the front of `numbers`, and the rest of `numbers`.

    Order in the file: biases, then with batch normalisation scales, means, variances, then the
    kernel (filters, channels / groups, height, width).
    """
    filters, size, groups = _integer(options, "filters"), _integer(options, "size"), _integer(options, "groups", 1)
    padding = size // 2 if _integer(options, "pad", 0) else _integer(options, "padding", 0)
    activation = options.get("activation", "logistic")
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation {activation} is not supported; known are {', '.join(_ACTIVATIONS)}")
    normalised = _integer(options, "batch_normalize", 0)
    convolution = nn.Conv2d(channels, filters, size, _integer(options, "stride", 1), padding, groups=groups)
    shape = tuple(convolution.weight.shape)
    ends = np.cumsum([filters] * (4 if normalised else 1) + [np.prod(shape)])
    if ends[-1] > len(numbers):
        raise ValueError(f"{weights} ends before this layer is complete; give the weights made for this cfg")
    bias, *statistics, kernel, rest = np.split(numbers, ends)
    bias, kernel = bias.astype(np.float64), kernel.reshape(shape).astype(np.float64)
    if normalised:
        scale, mean, variance = (part.astype(np.float64) for part in statistics)
        if (variance + _EPSILON <= 0).any():
            raise ValueError(f"{weights} has a variance of {variance.min():.2g}; give the weights made for this cfg")
        gain = scale / np.sqrt(variance + _EPSILON)
        bias, kernel = bias - gain * mean, kernel * gain[:, None, None, None]
    with torch.no_grad():
        convolution.bias.copy_(torch.from_numpy(bias))
        convolution.weight.copy_(torch.from_numpy(kernel))
    return nn.Sequential(convolution, _ACTIVATIONS[activation]()), rest


def _anchors(
    options: dict[str, str], shape: tuple[int, ...], frame: tuple[int, int], classes: int
) -> tuple[Tensor, ...]:
    """Of every anchor of a head: cell (x, y), size of a cell, anchor size (fractions of the image), stretch."""
    anchors = torch.tensor(_numbers(options, "anchors", float)).reshape(-1, 2)
    chosen = anchors[_numbers(options, "mask", int)]
    channels, height, width = shape
    if _integer(options, "classes") != classes:
        raise ValueError(f"{options['classes']} classes do not fit {classes} labels")
    if channels != len(chosen) * (5 + classes):
        raise ValueError(f"{channels} channels are not {len(chosen)} anchors x (5 + {classes} classes)")
    if options.get("nms_kind", "default") not in ("default", "greedynms"):
        raise ValueError(f"nms_kind {options['nms_kind']} is not supported")
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    grid = torch.stack([x, y], 2).float().expand(len(chosen), -1, -1, -1).reshape(-1, 2)
    cell = torch.tensor([1 / width, 1 / height]).expand(len(grid), 2)
    size = (chosen / torch.tensor(frame[::-1])).repeat_interleave(height * width, 0)
    stretch = torch.full((len(grid), 1), _numbers(options, "scale_x_y", float, "1")[0])
    return grid, cell, size, stretch


def _integer(options: dict[str, str], name: str, default: int | None = None) -> int:
    return _numbers(options, name, int, None if default is None else str(default))[0]


def _numbers(options: dict[str, str], name: str, kind: type, default: str | None = None) -> list:
    text = options.get(name, default)
    if text is None:
        raise ValueError(f"option {name} is missing")
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"option {name}={text} is not made of numbers") from error


def _rows(map_: Tensor, columns: int) -> Tensor:
    """A raw map (B, anchors * columns, h, w) as (B, anchors * h * w, columns)."""
    return map_.unflatten(1, (-1, columns)).permute(0, 1, 3, 4, 2).flatten(1, 3)


def _at(features: Features, proposals: list[Proposals]) -> Tensor:
    return torch.cat([rows[chosen.index] for rows, chosen in zip(features.rows, proposals, strict=True)])


def _confidence(rows: Tensor) -> Tensor:
    return rows[:, 4:5].sigmoid() * rows[:, 5:].sigmoid()


def _max_pool(values: Tensor, size: int, stride: int, padding: int) -> Tensor:
    """Darknet gives the total padding, the larger half right and below; it never wins a maximum."""
    near, far = padding // 2, padding - padding // 2
    return F.max_pool2d(F.pad(values, (near, far, near, far), value=-torch.inf), size, stride)


def _add(*values: Tensor) -> Tensor:
    if len({value.shape for value in values}) > 1:  # torch would repeat a single channel
        raise ValueError(f"outputs of the shapes {[tuple(value.shape[1:]) for value in values]} cannot be added")
    return sum(values[1:], values[0])


def _concatenate(*values: Tensor) -> Tensor:
    return torch.cat(values, 1)


def _same(values: Tensor) -> Tensor:
    return values
