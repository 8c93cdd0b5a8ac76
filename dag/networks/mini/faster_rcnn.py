"""Miniature Faster R-CNN: region proposal network, RoI max pooling, fully connected head (Ren et al., 2015)."""

from __future__ import annotations

from torch import Tensor, nn

from dag.networks.interface import Proposals
from dag.networks.layers import operators
from dag.networks.mini import bodies
from dag.networks.mini.two_stage import Features, TwoStage
from dag.networks.two_stage import rois


class FasterRCNN(TwoStage):
    """RoI max pooling to `cells` x `cells`, two fully connected layers, class-agnostic box deltas."""

    def __init__(self, *arguments, cells: int, width: int):
        super().__init__(*arguments)
        self.cells = cells
        self.fc = nn.Sequential(
            nn.Linear(self.trunk.widths[1] * cells**2, width),
            nn.ReLU(inplace=True),
            nn.Linear(width, width),
            nn.ReLU(inplace=True),
        )
        self.class_scores = nn.Linear(width, len(self.labels))
        self.box_deltas = nn.Linear(width, 4)

    def regions(self, features: Features, proposals: list[Proposals]) -> tuple[Tensor, Tensor]:
        maps = features.maps
        pooled = operators.roi_pool(maps, rois(proposals, maps), self.cells, 1 / self.stride)
        rows = pooled.flatten(1)
        attacked = rows.requires_grad and not self.class_scores.weight.requires_grad
        vectors = operators.perceptron(rows, self.fc[::2]) if attacked else self.fc(rows)
        return self.class_scores(vectors), self.box_deltas(vectors)


def faster_rcnn(
    body: str,
    labels: tuple[int, ...],
    sizes: tuple[float, ...] = (24, 38, 58),
    ratios: tuple[float, ...] = (0.5, 1, 2),
    cells: int = 5,
    width: int = 96,
) -> FasterRCNN:
    """Miniature Faster R-CNN.

    Parameters
    ----------
    body : str
        Name of the body, see `dag.networks.mini.bodies`.
    labels : sequence of int
        VOC class ids of the score columns, background (0) first.
    sizes, ratios : sequence of float
        Anchors: square root of the area in pixels, height / width.
    cells, width : int
        Cells per side of the pooled map, channels of the fully connected layers.
    """
    return FasterRCNN(bodies.body(body), labels, sizes, ratios, cells=cells, width=width)
