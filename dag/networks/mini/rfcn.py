"""Miniature R-FCN: position-sensitive score maps, averaged over the cells of each proposal (Dai et al., 2016)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from dag.networks.interface import Proposals
from dag.networks.layers import boxes, operators
from dag.networks.mini import bodies
from dag.networks.mini.two_stage import Features, TwoStage
from dag.networks.two_stage import rois


class RFCN(TwoStage):
    """Score and box maps for `cells` x `cells` positions, averaged over the cells of a proposal."""

    def __init__(self, *arguments, cells: int, width: int):
        super().__init__(*arguments)
        self.cells = cells
        self.reduce = bodies.convolution(self.trunk.widths[1], width, 1)
        self.class_maps = nn.Conv2d(width, len(self.labels) * cells**2, 1)
        self.box_maps = nn.Conv2d(width, 4 * cells**2, 1)

    def regions(self, features: Features, proposals: list[Proposals]) -> tuple[Tensor, Tensor]:
        maps = self.reduce(features.maps)
        return self._vote(self.class_maps(maps), proposals), self._vote(self.box_maps(maps), proposals)

    def scores(self, features: Features, proposals: list[Proposals]) -> Tensor:
        return self._vote(self.class_maps(self.reduce(features.maps)), proposals)

    def _vote(self, maps: Tensor, proposals: list[Proposals]) -> Tensor:
        # The operator takes x_max as exclusive.
        windows = [Proposals(boxes.exclusive(one.boxes)) for one in proposals]
        # The operator never reads the last row and column of the maps.
        maps = F.pad(maps, (0, 1, 0, 1))
        return operators.ps_roi_pool(maps, rois(windows, maps), self.cells, 1 / self.stride).mean((2, 3))


def rfcn(
    body: str,
    labels: tuple[int, ...],
    sizes: tuple[float, ...] = (24, 38, 58),
    ratios: tuple[float, ...] = (0.5, 1, 2),
    cells: int = 3,
    width: int = 64,
) -> RFCN:
    """Miniature R-FCN.

    Parameters
    ----------
    body : str
        Name of the body, see `dag.networks.mini.bodies`.
    labels : sequence of int
        VOC class ids of the score columns, background (0) first.
    sizes, ratios : sequence of float
        Anchors: square root of the area in pixels, height / width.
    cells, width : int
        Cells per side of the position-sensitive maps, channels of the layer before them.
    """
    return RFCN(bodies.body(body), labels, sizes, ratios, cells=cells, width=width)
