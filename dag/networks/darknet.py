"""Single-stage detectors (YOLOv2, v3, v4), imported from a Darknet cfg file and its weights.

Redmon and Farhadi, "YOLO9000: Better, Faster, Stronger", CVPR 2017 ([region] heads, softmax over the classes);
"YOLOv3: An Incremental Improvement", 2018 ([yolo] heads, an independent sigmoid per class).  A layer of the cfg may
read any earlier layer, so the network is a list of steps that are executed in order.

Where OpenCV's importer differs from Darknet's C code, this module follows the C code (see `darknet_layers`), with one
exception: images are resized with aligned pixel centres, as in OpenCV and torch, instead of aligned corners.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dag.networks import darknet_layers as layers
from dag.networks.darknet_files import Section, read_cfg, read_weights
from dag.networks.interface import Detections
from dag.networks.layers import operators
from dag.networks.layers.boxes import clip
from dag.networks.single_stage import Features, SingleStage, rows_of

# Options of [net] that affect only training or memory.
_TRAINING = (
    "batch subdivisions max_batches learning_rate learning_rate_min sgdr_cycle sgdr_mult momentum decay augment_speed "
    "sequential_subdivisions try_fix_nan weights_reject_freq equidistant_point badlabels_rejection_percentage "
    "num_sigmas_reject_badlabels ema_alpha use_cuda_graph loss_scale dynamic_minibatch optimized_memory "
    "workspace_size_limit_MB adam B1 B2 eps max_crop min_crop flip blur gaussian_noise mixup cutmix mosaic "
    "mosaic_bound contrastive contrastive_jit_flip contrastive_color unsupervised label_smooth_eps resize_step "
    "attention adversarial_lr max_chart_loss angle aspect saturation exposure hue power policy burn_in step scale "
    "steps scales seq_scales gamma show_receptive_field random"
)

# Maximum size of a layer's output for one image, 1 GB in float32; a larger one indicates a mistake in the cfg.
_LARGEST = 2**28


def yolo(
    cfg: Path,
    weights: Path,
    labels: Iterable[int | None] = range(1, 21),
    score_threshold: float = 0.005,
    nms: float = 0.45,
    letter_box: bool | None = None,
) -> SingleStage:
    """Build the network of a Darknet cfg file with [yolo] or [region] layers.

    Parameters
    ----------
    cfg, weights : Path
    labels : iterable of int or None
        VOC class ids of the class columns; the default suits weights trained on VOC.  Columns labelled None, e.g.
        COCO classes that VOC lacks, are dropped.  None is not allowed with [region] heads, whose softmax is over all
        classes.
    score_threshold : float
        `detect` reports every class whose objectness x probability exceeds it.  Darknet
        itself uses 0.005 to measure mAP (0.25 and 0.5 are for display): average precision ranks all
        detections, and a threshold of 0.2 costs 3 to 5 points (VOC samples).  Results depend on it,
        so it should be reported with every mAP.
    nms : float
        IoU above which `detect` suppresses boxes of the same class.  With `nms_kind=diounms` in the last head, the
        criterion is IoU - (d^2 / c^2)^beta_nms, where d is the distance of the box centres and c the diagonal of the
        enclosing box, in fractions of the image (`diounms_sort`).
    letter_box : bool, optional
        Fit the image into the frame of the cfg, preserving its aspect ratio and padding with grey (0.5), instead of
        stretching it to the frame.  Default: the option of [net], or False without one.

    Raises
    ------
    ValueError
        If the cfg has an unsupported layer or option, or the weights do not fit it.
    """
    return _Yolo(Path(cfg), Path(weights), tuple(labels), score_threshold, nms, letter_box)


class _Yolo(SingleStage):
    def __init__(
        self,
        cfg: Path,
        weights: Path,
        labels: tuple[int | None, ...],
        score_threshold: float,
        nms: float,
        letter_box: bool | None,
    ):
        super().__init__()
        self.labels = tuple(label for label in labels if label is not None)
        self.count = len(labels)
        self.columns = [*range(5), *(5 + column for column, label in enumerate(labels) if label is not None)]
        self.score_threshold, self.nms = score_threshold, nms
        net, *sections = read_cfg(cfg)
        numbers = read_weights(weights)
        self.convolutions = nn.ModuleList()
        self.steps = []  # per layer: function, numbers of its input layers (-1: the image)
        self.heads = []  # numbers of the [yolo] and [region] layers
        self.unread = set()  # layers whose step returns something else than Darknet, so that no layer may read them
        anchors, kinds = [], set()
        where = f"[net], line {net.line}"
        try:
            net.refuse_unknown("width height channels letter_box", _TRAINING, {"0": "track", "1": "time_steps"})
            if net.integer("channels", 3) != 3:
                raise ValueError("the images must have 3 channels")
            self.frame = (net.integer("height"), net.integer("width"))
            self.letter_box = bool(net.integer("letter_box", 0, 0)) if letter_box is None else letter_box
            # Shapes are inferred on the meta device, where even the largest map needs no memory.
            values = {-1: torch.empty(1, 3, *self.frame, device="meta")}
            for number, section in enumerate(sections):
                where = f"layer {number} [{section.kind}], line {section.line}"
                kind = layers.check(section)
                sources = layers.sources(kind, section, number)
                if self.unread.intersection(sources):
                    raise ValueError("it reads the output of a head, or of the layer before a head with new_coords")
                inputs = [values[source] for source in sources]
                if kind == "convolutional":
                    function = layers.convolution(section, inputs[0].shape[1])
                    self.convolutions.append(function)
                else:
                    function = layers.function(kind, section, inputs)
                values[number] = function(*inputs)
                if values[number].numel() > _LARGEST:
                    raise ValueError(f"its output of {tuple(values[number].shape[1:])} is too large; correct the sizes")
                if kind == "convolutional":
                    numbers = layers.fill(function[0], section, numbers, weights)
                if kind in layers.HEADS:
                    anchors.append(_anchors(kind, section, inputs[0].shape[1:], self.frame, len(labels)))
                    kinds.add((kind, self._new_coords(section, sections[number - 1])))
                    self.heads.append(number)
                    beta = section.real("beta_nms", 0.6)  # the last head decides, as in Darknet
                    self.beta = beta if section.text("nms_kind", "default") == "diounms" else None
                    self.unread.add(number)
                self.steps.append((function, sources))
        except (ValueError, RuntimeError) as error:  # RuntimeError: incompatible shapes in torch
            reason = str(error).splitlines()[0]
            raise ValueError(f"{cfg}, {where}: {reason}") from error
        if not anchors:
            raise ValueError(f"{cfg}: there is no [yolo] and no [region] layer; give the cfg of a detector")
        if len(kinds) > 1:
            raise ValueError(f"{cfg}: its heads are of different kinds, which is not supported")
        if len(numbers):
            raise ValueError(f"{weights}: {len(numbers)} numbers too many for {cfg.name}; give the weights made for it")
        ((kind, self.new_coords),) = kinds
        self.softmax = kind == "region"
        if self.softmax and len(self.labels) < len(labels):
            raise ValueError(f"{cfg}: labels hold None, and the softmax of a [region] layer is over all classes")
        for name, parts in zip(("grid", "cell", "anchor", "stretch"), zip(*anchors, strict=True), strict=True):
            self.register_buffer(name, torch.cat(parts))

    def _new_coords(self, head: Section, before: Section) -> bool:
        """Whether a head has `new_coords`; if so, move the sigmoid from the convolution before it into the head.

        Rows then hold logits as for any other head, so that f is the value before the sigmoid.
        """
        if not head.integer("new_coords", 0, 0):
            return False
        if layers.ALIASES.get(before.kind, before.kind) != "convolutional":
            raise ValueError("new_coords needs a convolution before it")
        if before.text("activation", "logistic") != "logistic":
            raise ValueError("new_coords needs activation=logistic in the convolution before it")
        self.convolutions[-1][1] = nn.Identity()
        self.unread.add(len(self.steps) - 1)
        return True

    def maps(self, images: Tensor) -> list[Tensor]:
        """Raw maps (B, anchors * (5 + C), h, w) of the heads, in the order of the cfg."""
        height, width = self._fitted(images.shape[-2:])
        if images.shape[-2:] != (height, width):
            images = F.interpolate(images, (height, width), mode="bilinear", align_corners=False)
        images = images / 255
        if (height, width) != self.frame:
            rows, columns = self.frame[0] - height, self.frame[1] - width
            images = F.pad(images, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2), value=0.5)
        values = {-1: images}
        for number, (function, sources) in enumerate(self.steps):
            values[number] = function(*(values[source] for source in sources))
        return [values[head] for head in self.heads]

    def _fitted(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of an image of `size` resized into the frame (`letterbox_image` in Darknet's image.c)."""
        (rows, columns), (height, width) = self.frame, size
        if not self.letter_box:
            return self.frame
        if columns * height < rows * width:
            return max(1, height * columns // width), columns
        return rows, max(1, width * rows // height)

    def features(self, images: Tensor) -> Features:
        """Per anchor t_x, t_y, t_w, t_h, objectness logit, class logits (YOLOv3, section 2.1).

        Anchors are ordered by head, as in the cfg, and within a head by (anchor of the mask, y, x).
        """
        rows = torch.cat([rows_of(map_, 5 + self.count) for map_ in self.maps(images)], 1)
        if len(self.labels) < self.count:
            rows = rows[..., self.columns]
        return Features(rows, tuple(images.shape[-2:]))

    def probabilities(self, scores: Tensor) -> Tensor:
        """Softmax of [region] heads; independent probabilities of [yolo] heads, whose rows need not sum to 1."""
        return scores.softmax(1) if self.softmax else scores.sigmoid()

    @torch.no_grad()
    def detect(self, images: Tensor) -> list[Detections]:
        """All classes above `score_threshold` of all anchors, after non-maximum suppression per class."""
        features = self.features(images)
        labels = torch.tensor(self.labels, device=images.device)
        detections = []
        for rows in features.rows:
            confidence = self._confidence(rows)
            anchors, columns = (confidence > self.score_threshold).nonzero(as_tuple=True)
            boxes, scores = self._boxes(rows, features.size)[anchors], confidence[anchors, columns]
            if self.beta is None:
                kept = operators.class_nms(boxes, scores, columns, self.nms)
            else:
                height, width = features.size
                relative = boxes / boxes.new_tensor([width, height, width, height])
                kept = _diou_nms(relative, scores, columns, self.nms, self.beta)
            boxes = clip(boxes[kept], features.size).float()
            detections.append(Detections(boxes, labels[columns[kept]], scores[kept].float()))
        return detections

    def _boxes(self, rows: Tensor, size: tuple[int, int]) -> Tensor:
        """Boxes (A, 4) of all anchors `rows` (A, 5 + C), in coordinates of an image of `size`, not clipped.

        YOLOv3, section 2.1; `scale_x_y` scales the sigmoid about its centre, so that a box centre
        can reach the border of its cell, and `new_coords` replaces exp by (2 sigmoid)^2 (`get_yolo_box`).  The
        networks were trained on edges of 0-based VOC boxes divided by the size of the image, so boxes need no offset
        by a pixel.
        """
        centre = ((rows[:, :2].sigmoid() - 0.5) * self.stretch + 0.5 + self.grid) * self.cell
        growth = (2 * rows[:, 2:4].sigmoid()) ** 2 if self.new_coords else rows[:, 2:4].exp()
        reach = growth * self.anchor / 2
        if self.letter_box:  # `correct_yolo_boxes` halves the border without rounding
            part = [fitted / whole for fitted, whole in zip(self._fitted(size), self.frame, strict=True)][::-1]
            part = rows.new_tensor(part)
            centre, reach = (centre - (1 - part) / 2) / part, reach / part
        height, width = size
        return torch.cat([centre - reach, centre + reach], 1) * rows.new_tensor([width, height, width, height])


def _anchors(
    kind: str, section: Section, shape: tuple[int, ...], frame: tuple[int, int], classes: int
) -> tuple[Tensor, ...]:
    """For every anchor of a head: cell (x, y), cell size and anchor size (fractions of the image), stretch.

    The cfg gives anchor sizes in pixels of the frame for [yolo] layers and in cells for [region] layers.
    """
    channels, height, width = shape
    sizes = section.reals("anchors")
    if len(sizes) % 2 or min(sizes) <= 0:
        raise ValueError("option anchors does not hold pairs of positive numbers")
    anchors = torch.tensor(sizes).reshape(-1, 2)
    mask = section.integers("mask", ",".join(map(str, range(section.integer("num", 1)))))
    if not all(0 <= number < len(anchors) for number in mask):
        raise ValueError(f"anchors {mask} are requested, but option anchors has {len(anchors)}")
    chosen = anchors[mask]
    if section.integer("classes", 20) != classes:
        raise ValueError(f"{section.integer('classes', 20)} classes do not fit {classes} labels")
    if channels != len(chosen) * (5 + classes):
        raise ValueError(f"{channels} channels are not {len(chosen)} anchors x (5 + {classes} classes)")
    if section.text("nms_kind", "default") not in ("default", "greedynms", "diounms"):
        raise ValueError(f"nms_kind {section.options['nms_kind']} is not supported")
    if kind == "region" and (section.integer("softmax", 0, 0), section.integer("coords", 4)) != (1, 4):
        raise ValueError("only softmax=1 and coords=4 are supported")
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    grid = torch.stack([x, y], 2).float().expand(len(chosen), -1, -1, -1).reshape(-1, 2)
    cell = torch.tensor([1 / width, 1 / height]).expand(len(grid), 2)
    whole = frame[::-1] if kind == "yolo" else (width, height)
    size = (chosen / torch.tensor(whole)).repeat_interleave(height * width, 0)
    stretch = section.real("scale_x_y", 1)
    if stretch <= 0:
        raise ValueError(f"option scale_x_y={stretch} is not positive")
    return grid, cell, size, torch.full((len(grid), 1), stretch)


def _diou_nms(boxes: Tensor, scores: Tensor, columns: Tensor, threshold: float, beta: float) -> Tensor:
    """Indices of kept boxes (R, 4), best score first; boxes of different `columns` (R,) never suppress each other."""
    order, kept = scores.argsort(descending=True, stable=True), []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        one, others = boxes[best], boxes[order]
        shared = (torch.minimum(one[2:], others[:, 2:]) - torch.maximum(one[:2], others[:, :2])).clamp(min=0).prod(1)
        union = (one[2:] - one[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1) - shared
        around = torch.maximum(one[2:], others[:, 2:]) - torch.minimum(one[:2], others[:, :2])
        apart = (one[:2] + one[2:] - others[:, :2] - others[:, 2:]) / 2
        likeness = shared / union - (apart.square().sum(1) / around.square().sum(1)) ** beta
        order = order[(columns[order] != columns[best]) | ~(likeness > threshold)]
    return torch.stack(kept) if kept else columns.new_empty(0)
