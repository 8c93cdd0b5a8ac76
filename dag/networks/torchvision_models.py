"""Networks of torchvision with weights trained on COCO: substitutes, not the networks of the paper.

torchvision builds the networks, and its weight enums give categories, mean, standard deviation and size.
The weight file itself is one of the project's downloads (role `state_dict`), whose layer names are kept.
No other module imports torchvision, and this one is imported only to build such a network.

Detectors have 90 categories, of which the 20 of VOC are the score columns; the other 70 cannot be
adversarial labels, and detections of them are dropped.  Networks with a softmax (Faster R-CNN, SSD)
have a background column too, and their f(X, t) are log-probabilities over all 91 columns, restricted
to these 21.  They are the logits minus a term common to all columns: f_l' - f_l, its gradient and the
arg max are those of the logits, and exp f are the probabilities of the complete network, 70 categories
included.  A target therefore counts as moved when another class of VOC or background outscores its true
class, but not when one of the 70 does, e.g. truck before car, which would hardly change average precision.
RetinaNet and FCOS have one sigmoid per category: f are the 20 logits, without background.

torchvision's boxes end at the far edge of their last pixel, those of this project at the pixel itself,
so 1 is subtracted from x_max and y_max.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FCOS, FasterRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.models.detection.ssd import SSD
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import clip_boxes_to_image
from torchvision.transforms.functional import resize

from dag.data.classes import VOC
from dag.networks.interface import Detections, Detector, Network, Proposals, Segmenter
from dag.networks.layers import operators
from dag.networks.layers.boxes import exclusive

LAST = 90  # last category of the weights COCO_V1

# Trained with frozen batch normalisation without an epsilon; torchvision sets it to 0 for these.
_NO_EPSILON = ("fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn")


def segmenter(name: str, short_side: int | None = None) -> Segmenter:
    """FCN, DeepLabv3 or LR-ASPP with the 21 classes of VOC (weights COCO_WITH_VOC_LABELS_V1).

    Parameters
    ----------
    name : str
        torchvision's name, e.g. "fcn_resnet50".
    short_side : int, optional
        Shorter side, in pixels, to which images are resized (bilinear, antialiased); default: that of the weights'
        preset, 520.  The networks were trained at that scale; VOC images are smaller.

    Raises
    ------
    ValueError
        If torchvision has no such network with such weights.
    """
    weights = _weights(name, "COCO_WITH_VOC_LABELS_V1")
    # The files of FCN and DeepLab contain an auxiliary classifier, which is loaded but never run.
    settings = {} if name.startswith("lraspp") else {"aux_loss": True}
    network = torchvision.models.get_model(name, weights=None, weights_backbone=None, **settings)
    return _Segmenter(network, weights, short_side)


def detector(name: str, labels: Sequence[int] | None = None, **settings) -> Detector:
    """Faster R-CNN, RetinaNet, SSD or FCOS.

    Parameters
    ----------
    name : str
        torchvision's name, e.g. "fasterrcnn_resnet50_fpn".
    labels : sequence of int, optional
        Class ids of the columns of a custom network, background first; their number is torchvision's `num_classes`.
        Its body, batch normalisations included, is assumed to come from the weights COCO_V1.  Default: the VOC
        classes of the weights COCO_V1.
    **settings
        Arguments of torchvision's class: min_size, max_size, score_thresh (Faster R-CNN: box_score_thresh) and others.

    Raises
    ------
    ValueError
        If torchvision has no such network with such weights.
    """
    if labels is None:
        columns = dict(enumerate(voc_columns(_weights(name, "COCO_V1").meta["categories"])))
    else:
        columns = {label: column for column, label in enumerate(labels)}
        settings = settings | {"num_classes": len(labels)}
    network = torchvision.models.get_model(name, weights=None, weights_backbone=None, **settings).eval()
    if name in _NO_EPSILON:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = torch.finfo(torch.float32).tiny  # torch 2.11 rejects 0; negligible beside a variance
    if isinstance(network, FasterRCNN):
        return _TwoStage(network, columns, softmax=True)
    return _SingleStage(network, columns, softmax=isinstance(network, SSD))


def voc_columns(categories: Sequence[str]) -> tuple[int, ...]:
    """Columns of background and the 20 classes of VOC, in VOC order, among the categories of weights.

    Raises
    ------
    ValueError
        If a class is missing.
    """
    found = {VOC.find(category): column for column, category in enumerate(categories)}
    missing = [name for label, name in enumerate(VOC.names) if label not in found]
    if missing:
        raise ValueError(f"the weights do not know {missing[0]}; choose weights trained on all classes of VOC")
    return tuple(found[label] for label in range(len(VOC.names)))


def _weights(name: str, kind: str) -> torchvision.models.Weights:
    """torchvision's entry for a weight file: URL, categories and preprocessing."""
    try:
        return torchvision.models.get_model_weights(name)[kind]
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"torchvision has no network {name!r} with weights {kind}; see torchvision.models.list_models()"
        ) from error


def _adopt(network: nn.Module, parts: nn.Module) -> None:
    """Add the layers of `parts` to `network`, under their names in the weight file."""
    for name, part in parts.named_children():
        network.add_module(name, part)


class _Normalised(Network):
    """Adds the pairs of ResNets, where bn1 follows conv1, and so on."""

    def normalised(self) -> Iterator[tuple[nn.Module, str, str]]:
        yield from super().normalised()
        for block in self.modules():
            if isinstance(block, IntermediateLayerGetter | BasicBlock | Bottleneck):
                for norm in [name for name, _ in block.named_children() if re.fullmatch("bn[123]", name)]:
                    yield block, norm.replace("bn", "conv"), norm


class _Segmenter(_Normalised, Segmenter):
    """Scores are upsampled directly to the image; torchvision upsamples them to the resized image."""

    def __init__(self, network: nn.Module, weights: torchvision.models.Weights, short_side: int | None):
        super().__init__()
        preset = weights.transforms()
        self.labels = tuple(map(VOC.find, weights.meta["categories"]))
        self.channels_last = any(type(module) is nn.Conv2d and module.groups > 1 for module in network.modules())
        self.short_side = short_side or preset.resize_size[0]
        self.register_buffer("mean", 255 * torch.tensor(preset.mean)[:, None, None], persistent=False)
        self.register_buffer("spread", 255 * torch.tensor(preset.std)[:, None, None], persistent=False)
        _adopt(self, network)

    def body(self, images: Tensor) -> Tensor:
        images = resize(images, [self.short_side], antialias=True)
        maps = self.backbone((images - self.mean) / self.spread)
        return self.classifier(maps.get("out", maps))  # LR-ASPP reads two maps

    def upsample(self, scores: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(scores, size, mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class Features:
    """Output of the trunk for a batch.

    Attributes
    ----------
    maps : dict of str to Tensor (B, D, h, w)
        Levels of the pyramid, finest first.
    images : ImageList
        Input of the trunk: the resized and padded images, with their sizes before padding.
    size : tuple of int
        (H, W) of the images.
    """

    maps: dict[str, Tensor]
    images: ImageList
    size: tuple[int, int]

    @property
    def scale(self) -> Tensor:
        """Factors (4,) from box coordinates in the image to those in the resized image."""
        (height, width), (new_height, new_width) = self.size, self.images.image_sizes[0]
        x, y = new_width / width, new_height / height
        return self.images.tensors.new_tensor([x, y, x, y])


class _Detector(_Normalised, Detector):
    """Base class of both kinds, with a `softmax` over the categories or a sigmoid for each.

    `columns` maps class ids to columns, background first.
    """

    def __init__(self, network: nn.Module, columns: Mapping[int, int], *, softmax: bool):
        super().__init__()
        self.softmax = softmax
        _adopt(self, network)
        # The complete network as a method, so that it is no submodule: the weight file has its layers only.
        self.whole = network.forward
        background, *foreground = columns
        self.labels = (background, *foreground) if softmax else tuple(foreground)
        ids = torch.full((1 + max(LAST, *columns.values()),), -1)  # by category; -1: dropped
        ids[[columns[label] for label in foreground]] = torch.tensor(foreground)
        columns = torch.tensor([columns[label] for label in self.labels])
        self.register_buffer("columns", columns, persistent=False)
        self.register_buffer("ids", ids, persistent=False)

    def features(self, images: Tensor) -> Features:
        resized, _ = self.transform(list(images / 255))
        return Features(self.backbone(resized.tensors), resized, tuple(images.shape[-2:]))

    def probabilities(self, scores: Tensor) -> Tensor:
        """Of the complete network: rows do not sum to 1, as the other categories are left out."""
        return scores.exp() if self.softmax else scores.sigmoid()

    @torch.no_grad()
    def detect(self, images: Tensor) -> list[Detections]:
        """Detections of torchvision's network, of the classes that have a column."""
        detections = []
        for found in self.whole(list(images / 255)):
            labels = self.ids[found["labels"]]
            kept = labels >= 0
            detections.append(Detections(_inclusive(found["boxes"][kept]), labels[kept], found["scores"][kept]))
        return detections

    def _vectors(self, logits: Tensor) -> Tensor:
        """Score vectors f (..., C) from logits (..., K) of all categories."""
        return (logits.log_softmax(-1) if self.softmax else logits)[..., self.columns]

    def _proposals(self, features: Features, boxes: Tensor, ranks: Tensor, nms: float, limit: int) -> list[Proposals]:
        """The best of all boxes (B, A, 4), in coordinates of the resized images, by `ranks` (B, A)."""
        proposals = []
        for image_boxes, image_ranks, size in zip(boxes, ranks, features.images.image_sizes, strict=True):
            clipped = clip_boxes_to_image(image_boxes, size)
            kept = _best(clipped, image_ranks, nms, limit)
            proposals.append(Proposals(_inclusive(clipped[kept] / features.scale).float(), kept))
        return proposals


class _TwoStage(_Detector):
    """Faster R-CNN on a feature pyramid."""

    @torch.no_grad()
    def propose(self, features: Features, *, nms: float, limit: int) -> list[Proposals]:
        """Boxes of the region proposal network, selected jointly from all levels of the pyramid.

        Its test-time limits (anchors per level, proposals, suppression within a level) apply only to `detect`.
        """
        maps = list(features.maps.values())
        objectness, deltas = concat_box_prediction_layers(*self.rpn.head(maps))
        anchors = self.rpn.anchor_generator(features.images, maps)
        boxes = self.rpn.box_coder.decode(deltas, anchors).view(len(anchors), -1, 4)
        proposals = self._proposals(features, boxes, objectness.view(len(anchors), -1), nms, limit)
        return [Proposals(one.boxes) for one in proposals]

    def scores(self, features: Features, proposals: list[Proposals]) -> Tensor:
        """Log-probabilities (R, C): background and the classes that have a column."""
        boxes = [exclusive(one.boxes.to(features.scale)) * features.scale for one in proposals]
        pooled = self.roi_heads.box_roi_pool(features.maps, boxes, features.images.image_sizes)
        logits, _ = self.roi_heads.box_predictor(self.roi_heads.box_head(pooled))
        return self._vectors(logits)


class _SingleStage(_Detector):
    """RetinaNet, FCOS and SSD: every anchor is a proposal."""

    def __init__(self, network: nn.Module, columns: Mapping[int, int], *, softmax: bool):
        super().__init__(network, columns, softmax=softmax)
        coder = network.box_coder
        self.decode = coder.decode if isinstance(network, FCOS) else coder.decode_single

    @torch.no_grad()
    def propose(self, features: Features, *, nms: float, limit: int) -> list[Proposals]:
        """Decoded anchors, ranked by the confidence in the best class that has a column; class-agnostic."""
        maps = list(features.maps.values())
        deltas, centreness = self._regression(maps)
        anchors = self.anchor_generator(features.images, maps)
        boxes = torch.stack([self.decode(*part) for part in zip(deltas, anchors, strict=True)])
        confidence = self._confidence(self.head.classification_head(maps), centreness)
        return self._proposals(features, boxes, confidence[..., self.columns > 0].amax(-1), nms, limit)

    def scores(self, features: Features, proposals: list[Proposals]) -> Tensor:
        """Class logits (R, C) at the anchors; SSD: log-probabilities, with background."""
        return self._vectors(_at(self.head.classification_head(list(features.maps.values())), proposals))

    def confidence(self, features: Features, proposals: list[Proposals]) -> Tensor:
        """Probabilities; FCOS: their geometric mean with centreness, as the network ranks its detections."""
        maps = list(features.maps.values())
        logits, (_, centreness) = self.head.classification_head(maps), self._regression(maps)
        centreness = None if centreness is None else _at(centreness, proposals)
        return self._confidence(_at(logits, proposals), centreness)

    def _regression(self, maps: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Box deltas (B, A, 4), and for FCOS the logits of centreness (B, A, 1)."""
        output = self.head.regression_head(maps)
        return output if isinstance(output, tuple) else (output, None)

    def _confidence(self, logits: Tensor, centreness: Tensor | None) -> Tensor:
        probabilities = self.probabilities(self._vectors(logits))
        return probabilities if centreness is None else (probabilities * centreness.sigmoid()).sqrt()


def _best(boxes: Tensor, ranks: Tensor, nms: float, limit: int) -> Tensor:
    """Rows of the `limit` best boxes (R, 4) that survive suppression at IoU > `nms`, best first.

    Whether a box survives depends only on better boxes, so suppression starts with the top of the ranking
    and extends it only if fewer than `limit` survive: a pyramid has up to 270 000 anchors.
    """
    order = ranks.argsort(descending=True, stable=True)
    order = order[(boxes[order, 2:] - boxes[order, :2] > 0).all(1)]  # drops boxes outside the image
    seen = 2 * limit
    while True:
        candidates = order[:seen]
        kept = candidates[operators.nms(boxes[candidates], ranks[candidates], nms)[:limit]]
        if len(kept) == limit or seen >= len(order):
            return kept
        seen *= 2


def _at(values: Tensor, proposals: list[Proposals]) -> Tensor:
    """Rows (R, K) of raw outputs (B, A, K) that belong to proposals."""
    return torch.cat([rows[chosen.index] for rows, chosen in zip(values, proposals, strict=True)])


def _inclusive(boxes: Tensor) -> Tensor:
    """Convert boxes (R, 4) that end at the far edge of their last pixel to boxes that end at that pixel."""
    return boxes - torch.tensor([0, 0, 1, 1], dtype=boxes.dtype, device=boxes.device)
