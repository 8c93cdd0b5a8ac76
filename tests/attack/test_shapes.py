"""Shaped examples: maps by counting pixels, and an attack whose every step is known."""

import numpy as np
import pytest
import torch
from torch import nn

from dag.attack import shapes
from dag.attack.arithmetic import perceptibility
from dag.networks.interface import Segmenter
from dag.report import collect
from dag.workflow import store

SETTINGS = {"iterations": 900, "step": 0.5, "stop": 0.0, "size": 0.5}


class Red(Segmenter):
    """Says 6 (bus) where the red value is above 100, pixel by pixel; its gradient is 1 in red, -1 for background."""

    labels = (6, 0)

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def body(self, images):
        return torch.stack([images[:, 0], 200 - images[:, 0]], 1)

    def upsample(self, scores, size):
        return scores


def image(height: int = 18, width: int = 36) -> np.ndarray:
    """Red values a quarter off every value that is reached by steps of a half: no pixel stands on the edge."""
    values = np.random.default_rng(3).integers(160, 240, (3, height, width)) / 2 + 0.25
    return values.astype(np.float32)


# Maps


@pytest.mark.parametrize(("height", "width", "size"), [(40, 60, 0.5), (60, 40, 0.75), (41, 61, 1.0), (96, 128, 0.6)])
def test_a_square_has_the_area_of_its_side(height, width, size):
    wanted = shapes.wanted_map("square", height, width, 6, size)
    assert wanted.shape == (height, width) and wanted.dtype == np.uint8 and set(np.unique(wanted)) <= {0, 6}
    rows, columns = np.nonzero(wanted)
    side = size * min(height, width)
    for extent, length in ((rows, height), (columns, width)):
        assert abs(np.ptp(extent) + 1 - side) <= 1
        assert extent.min() == length - 1 - extent.max()  # in the middle
    assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)  # without holes


def test_a_square_of_twenty():
    assert (shapes.wanted_map("square", 40, 60, 6, 0.5) == 6).sum() == 20 * 20


@pytest.mark.parametrize(("height", "width", "size"), [(300, 500, 0.6), (401, 301, 1.0)])
def test_a_circle_has_the_area_of_a_disc(height, width, size):
    wanted = shapes.wanted_map("circle", height, width, 1, size)
    radius = size * min(height, width) / 2
    assert (wanted == 1).sum() == pytest.approx(np.pi * radius**2, rel=0.01)
    assert np.array_equal(wanted, wanted[::-1]) and np.array_equal(wanted, wanted[:, ::-1])
    y, x = np.nonzero(wanted)
    assert np.hypot(y - (height - 1) / 2, x - (width - 1) / 2).max() <= radius


def test_a_small_circle_by_hand():
    assert shapes.wanted_map("circle", 4, 6, 2, 1.0).tolist() == [
        [0, 0, 2, 2, 0, 0],
        [0, 2, 2, 2, 2, 0],
        [0, 2, 2, 2, 2, 0],
        [0, 0, 2, 2, 0, 0],
    ]


def test_strips_are_four_of_nine_bands():
    wanted = shapes.wanted_map("strips", 5, 18, 3)
    assert wanted[0].tolist() == [0, 0, 3, 3] * 4 + [0, 0] and (wanted == wanted[0]).all()
    assert (shapes.wanted_map("strips", 7, 900, 3) == 3).sum() == 7 * 400
    uneven = shapes.wanted_map("strips", 1, 128, 3)[0] != 0
    assert (np.diff(uneven.astype(int)) == 1).sum() == 4 and uneven.sum() == pytest.approx(128 * 4 / 9, abs=4)


def test_unknown_shapes_and_sizes_are_refused():
    with pytest.raises(ValueError, match="shape 'star' is unknown; choose circle, square or strips"):
        shapes.wanted_map("star", 9, 9, 1)
    for size in (0, 1.2):
        with pytest.raises(ValueError, match=f"size {size} of a shape is not in"):
            shapes.wanted_map("circle", 9, 9, 1, size)


def test_noise_is_uniform_and_seeded():
    first, again, other = (shapes.noise(60, 80, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert first.shape == (3, 60, 80) and first.dtype == np.float32 and first.min() >= 0 and first.max() <= 255
    counts = np.histogram(first, 8, (0, 255))[0]
    # 14,400 values in 8 bins: 1,800 each, five standard deviations are 198
    assert abs(counts - 1800).max() < 198


# The attack


@pytest.mark.parametrize("shape", ["circle", "square", "strips"])
def test_every_pixel_of_a_linear_network_walks_straight_to_its_label(shape):
    """A pixel moves by 0.5 a step in red until it is over the edge at 100: how many steps it takes is known."""
    clean = image()
    wanted = shapes.wanted_map(shape, *clean.shape[1:], 6, 0.5)
    attack = shapes.reach(Red(), clean, wanted, iterations=900, step=0.5, stop=0, name="x")
    missing = np.where(wanted == 6, 100 - clean[0], clean[0] - 100)
    steps = np.ceil(missing.clip(0) / 0.5).astype(int)
    assert attack.status == "converged" and attack.iterations == steps.max() > 10
    assert attack.active == [(steps > m).sum() for m in range(steps.max() + 1)]
    r = attack.perturbation[0].numpy()
    np.testing.assert_allclose(r[0], np.where(wanted == 6, 0.5, -0.5) * steps, atol=1e-4)
    assert not r[1:].any()


def test_the_attack_stops_at_its_share_and_at_its_limit():
    clean = image()
    wanted = shapes.wanted_map("square", *clean.shape[1:], 6, 0.5)
    whole = shapes.reach(Red(), clean, wanted, iterations=900, step=0.5, stop=0, name="x")
    share = shapes.reach(Red(), clean, wanted, iterations=900, step=0.5, stop=0.1, name="x")
    # a tenth of all pixels, background included
    enough = next(m for m, left in enumerate(whole.active) if left <= 0.1 * wanted.size)
    assert share.status == "converged" and share.active == whole.active[: enough + 1] and enough < whole.iterations
    short = shapes.reach(Red(), clean, wanted, iterations=3, step=0.5, stop=0, name="x")
    assert (short.status, short.active) == ("iteration limit", whole.active[:4])


def test_a_class_that_the_network_does_not_know_is_named():
    wanted = shapes.wanted_map("square", 18, 36, 3)
    with pytest.raises(
        ValueError, match="square on a: the network does not know the class bird; choose one of bus, backg"
    ):
        shapes.reach(Red(), image(), wanted, iterations=1, step=1, stop=0, name="square on a")


# What is stored


def made(path, **options):
    starts = {"a": image(), "noise": shapes.noise(9, 27, 1)}
    wanted = {"circle": "bus", "strips": "bus"}
    shapes.shape(Red(), starts, wanted, path, settings=SETTINGS, header={"x": 1}, **options)
    return collect.shaped_examples(path), starts


def test_examples_are_stored_whole(tmp_path):
    rows, starts = made(tmp_path / "s.h5")
    assert [(row["start"], row["shape"]) for row in rows] == [(s, k) for s in starts for k in ("circle", "strips")]
    for row in rows:
        clean = starts[row["start"]]
        assert np.array_equal(row["image"], clean)
        assert np.array_equal(row["truth"], shapes.wanted_map(row["shape"], *clean.shape[1:], 6, 0.5))
        assert np.array_equal(row["before"], np.where(clean[0] > 100, 6, 0))
        # the values never leave 0..255 here, so what converged is reached
        assert row["status"] == "converged" and row["reached"] == 1 and np.array_equal(row["after"], row["truth"])
        assert row["reached_before"] == (row["before"] == row["truth"]).mean()
        assert row["perceptibility"] == perceptibility(row["perturbation"])
        assert row["largest"] == abs(row["perturbation"]).max()
        assert len(row["active"]) == row["iterations"] + 1 and row["active"][-1] == 0
    assert rows[0]["label"] == "bus as circle on a" and rows[2]["label"] == "bus as circle on uniform noise"
    assert rows[0]["outcome"] == f"converged ({rows[0]['iterations']} iterations), 100.0 % as wanted"


def test_an_interruption_changes_nothing(tmp_path):
    made(tmp_path / "whole.h5")

    def two(examples):
        yield from examples[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "broken.h5", progress=two)
    assert not (tmp_path / "broken.h5").exists()
    seen = []
    made(tmp_path / "broken.h5", progress=lambda examples: seen.append(examples) or examples)
    assert len(seen[0]) == 4
    assert (tmp_path / "broken.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_an_attack_that_fails_names_its_example(tmp_path):
    class Broken(Red):
        def body(self, images):
            return super().body(images) * torch.nan

    with pytest.raises(ValueError, match=r"s.h5: circle on a: the network's scores are not finite"):
        shapes.shape(Broken(), {"a": image()}, {"circle": "bus"}, tmp_path / "s.h5", settings=SETTINGS, header={"x": 1})


def test_the_shard_is_of_its_own_kind(tmp_path):
    made(tmp_path / "s.h5")
    with pytest.raises(ValueError, match="holds shapes, not perturbations"):
        store.read_header(tmp_path / "s.h5", "perturbations")
