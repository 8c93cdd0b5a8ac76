"""Networks of torchvision with weights trained on COCO: substitutes, not the networks of the paper.

torchvision builds them and its weight enums say what belongs to the weights: categories, mean, standard
deviation, size.  The weight file itself comes through the project's downloads (role `state_dict`); the
layers keep the names they have in it.  This is the one module that imports torchvision; it is
imported only where such a network is built.

Detectors know 90 categories, of which the 20 of VOC are the score columns; the other 70 cannot be
adversarial labels, and detections of them are dropped.  Networks that end in a softmax (Faster R-CNN,
SSD) have a background column too, and their f(X, t) are the log-probabilities of all 91 columns, of
which 21 are shown.  That is the logits minus a term common to all columns: f_l' - f_l, its gradient and the
arg max are those of the logits, and the probabilities of the whole network, 70 categories included,
are exp f.  A target therefore counts as moved when another class of VOC or background beats its true one, not
when it turns into a truck with the car in second place, which average precision would hardly notice.
RetinaNet and FCOS end in one sigmoid per category: f are the 20 logits, without background.

torchvision's boxes end at the far edge of their last pixel, those of this project on the pixel: 1 is
taken from x_max and y_max.
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

LAST = 90  # category of the weights COCO_V1

# Trained when torchvision's frozen batch normalisation added nothing to the variance; it sets 0 for these.
_NO_EPSILON = ("fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn")


def segmenter(name: str, short_side: int | None = None) -> Segmenter:
    """FCN, DeepLabv3 or LR-ASPP with the 21 classes of VOC (weights COCO_WITH_VOC_LABELS_V1).

    Parameters
    ----------
    name : str
        torchvision's name, e.g. "fcn_resnet50".
    short_side : int, optional
        Images are resized (bilinear, antialiased) until their shorter side has this many pixels; default: as the
        weights' preset says, 520.  The networks were trained at that scale, VOC images are smaller.

    Raises
    ------
    ValueError
        If torchvision has no such network with such weights.
    """
    weights = _weights(name, "COCO_WITH_VOC_LABELS_V1")
    # The files of FCN and DeepLab hold an auxiliary classifier, which is loaded and never run.
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
        Class ids of the columns of a network of one's own, background first, as many as torchvision's `num_classes`.
        Its body is taken to come from the weights COCO_V1, and so are its normalisations.  Default: VOC's classes
        among those of the weights COCO_V1.
    **settings
        Of torchvision's class: min_size, max_size, score_thresh (Faster R-CNN: box_score_thresh) and others.

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
                module.eps = torch.finfo(torch.float32).tiny  # torch 2.11 refuses 0; added to a variance, it is nothing
    if isinstance(network, FasterRCNN):
        return _TwoStage(network, columns, softmax=True)
    return _SingleStage(network, columns, softmax=isinstance(network, SSD))


def voc_columns(categories: Sequence[str]) -> tuple[int, ...]:
    """Column of background and of the 20 classes of VOC, in their order, among the categories of weights.

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
    """torchvision's entry for a weight file: its address, what its columns mean, how images are prepared."""
    try:
        return torchvision.models.get_model_weights(name)[kind]
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"torchvision has no network {name!r} with weights {kind}; see torchvision.models.list_models()"
        ) from error


def _adopt(network: nn.Module, parts: nn.Module) -> None:
    """Make the layers of `parts` layers of `network`, under the names that they have in the weight file."""
    for name, part in parts.named_children():
        network.add_module(name, part)


class _Normalised(Network):
    """Batch normalisations of a ResNet have the number of the convolution before them."""

    def normalised(self) -> Iterator[tuple[nn.Module, str, str]]:
        yield from super().normalised()
        for block in self.modules():
            if isinstance(block, IntermediateLayerGetter | BasicBlock | Bottleneck):
                for norm in [name for name, _ in block.named_children() if re.fullmatch("bn[123]", name)]:
                    yield block, norm.replace("bn", "conv"), norm


class _Segmenter(_Normalised, Segmenter):
    """torchvision enlarges the scores to the resized image; here they go to the image itself in one step."""

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
    """What the trunk yields for a batch.

    Attributes
    ----------
    maps : dict of str to Tensor (B, D, h, w)
        Levels of the pyramid, finest first.
    images : ImageList
        The images as the trunk saw them, resized and padded, with their sizes before padding.
    size : tuple of int
        (H, W) of the images.
    """

    maps: dict[str, Tensor]
    images: ImageList
    size: tuple[int, int]

    @property
    def scale(self) -> Tensor:
        """(4,): coordinates of boxes in the resized image divided by those in the image."""
        (height, width), (new_height, new_width) = self.size, self.images.image_sizes[0]
        x, y = new_width / width, new_height / height
        return self.images.tensors.new_tensor([x, y, x, y])


class _Detector(_Normalised, Detector):
    """Common to both kinds; `softmax` over the categories, or else a sigmoid for each.

    `columns`: of every class id, that of background first.
    """

    def __init__(self, network: nn.Module, columns: Mapping[int, int], *, softmax: bool):
        super().__init__()
        self.softmax = softmax
        _adopt(self, network)
        # The whole network, without being a layer itself: only its layers have a place in the weight file.
        self.whole = network.forward
        background, *foreground = columns
        self.labels = (background, *foreground) if softmax else tuple(foreground)
        ids = torch.full((1 + max(LAST, *columns.values()),), -1)  # of every category that is known, not background
        ids[[columns[label] for label in foreground]] = torch.tensor(foreground)
        columns = torch.tensor([columns[label] for label in self.labels])
        self.register_buffer("columns", columns, persistent=False)
        self.register_buffer("ids", ids, persistent=False)

    def features(self, images: Tensor) -> Features:
        resized, _ = self.transform(list(images / 255))
        return Features(self.backbone(resized.tensors), resized, tuple(images.shape[-2:]))

    def probabilities(self, scores: Tensor) -> Tensor:
        """Of the whole network: rows do not sum to 1, the other categories have their share."""
        return scores.exp() if self.softmax else scores.sigmoid()

    @torch.no_grad()
    def detect(self, images: Tensor) -> list[Detections]:
        """What torchvision's own network returns, of the classes that have a column."""
        detections = []
        for found in self.whole(list(images / 255)):
            labels = self.ids[found["labels"]]
            kept = labels >= 0
            detections.append(Detections(_inclusive(found["boxes"][kept]), labels[kept], found["scores"][kept]))
        return detections

    def _vectors(self, logits: Tensor) -> Tensor:
        """f of logits (..., K) of all categories: (..., C)."""
        return (logits.log_softmax(-1) if self.softmax else logits)[..., self.columns]

    def _proposals(self, features: Features, boxes: Tensor, ranks: Tensor, nms: float, limit: int) -> list[Proposals]:
        """The best of all boxes (B, A, 4) of the resized images, by `ranks` (B, A)."""
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
        """Boxes of the region proposal network, all levels of the pyramid together.

        The limits of its normal test (anchors per level, proposals, suppression within a level) concern `detect` alone.
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
        """Decoded anchors, ranked by the confidence in the best class that has a column, all classes together."""
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

    Whether a box survives depends on better ones alone, so the suppression sees more of the ranking only
    if it takes more to find `limit` survivors: a pyramid has up to 270 000 anchors.
    """
    order = ranks.argsort(descending=True, stable=True)
    order = order[(boxes[order, 2:] - boxes[order, :2] > 0).all(1)]  # what lies outside of the image
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
    """Boxes (R, 4) whose x_max and y_max are the last pixel, of boxes that end at its far edge."""
    return boxes - torch.tensor([0, 0, 1, 1], dtype=boxes.dtype, device=boxes.device)
