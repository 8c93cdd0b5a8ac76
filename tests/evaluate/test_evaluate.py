"""From stored perturbations to scores: sums and controls, cells, predictions, and scores by hand."""

import json
import math
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dag.attack import arithmetic, combinations
from dag.attack.arithmetic import perceptibility
from dag.evaluate import cells, metrics, predict, score
from dag.networks.building import build
from dag.networks.interface import Detections, Detector, Segmenter
from dag.report import collect
from dag.workflow import files, store
from dag.workflow.names import CONTROLS
from dag.workflow.seeds import generator

IDS = ["a", "b", "c"]
SHAPE = (3, 2, 2)


def noise(image_id: str, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *image_id.encode()]).normal(0, 3, SHAPE).astype(np.float32)


def shard(path: Path, kind: str, arrays: dict, header: dict | None = None, **attributes) -> Path:
    """A finished shard of the given arrays."""
    with store.writing(path, kind, list(arrays), {"of": str(path)} if header is None else header) as file:
        for image_id, array in arrays.items():
            known = {}
            if kind == "perturbations":
                known = {"perceptibility": perceptibility(array), "largest": float(abs(array).max())}
            file.put(image_id, array, known | attributes)
    return path


# Cells that cannot be read


def test_what_names_a_damaged_cell_is_deleted_with_it(tmp_path):
    header = {"network": "v"}
    paths = [shard(tmp_path / f"{name}.h5", "predictions", {"a": noise("a")}, header) for name in "xy"]
    manifests = [tmp_path / f"{name}.json" for name in "xyz"]
    for path, manifest in zip([*paths, paths[0]], manifests, strict=True):
        cells.write_manifest(manifest, [cells.Cell("v", "none", "float", None, path, header)])
    source = shard(tmp_path / "r.h5", "perturbations", {"a": noise("a")})
    for path in (paths[0], source):
        path.write_bytes(path.read_bytes()[:-9])
    names = f"{paths[0]}, {manifests[0]}, {manifests[2]}"
    expected = f"x.h5: .*; deleted {names}: run the workflow again, which computes it$"
    with pytest.raises(ValueError, match=expected), cells.recomputed(*manifests):
        cells.read_manifest(manifests[0])
    assert [path.exists() for path in [*paths, *manifests]] == [False, True, False, True, False]
    # what is not a cell of theirs is declared to Snakemake, and stays for the user
    with pytest.raises(store.ShardError, match="r.h5: .*; delete it and run"), cells.recomputed(*manifests):
        store.read_header(source)
    assert source.exists()
    manifests[1].write_text("{")
    with (
        pytest.raises(ValueError, match="y.json: not a list of cells; deleted .*y.json: run"),
        cells.recomputed(*manifests),
    ):
        cells.read_manifest(manifests[1])
    assert paths[1].exists() and not manifests[1].exists()


# Sums and permuted controls


def test_a_sum_of_shards(tmp_path):
    sources = [shard(tmp_path / f"{i}.h5", "perturbations", {x: noise(x, i) for x in IDS}) for i in range(3)]
    combinations.combine(sources, tmp_path / "sum.h5", "code")
    for image_id in IDS:
        r, known = store.read(tmp_path / "sum.h5", image_id, "perturbations")
        np.testing.assert_allclose(r, sum(noise(image_id, i).astype(float) for i in range(3)), rtol=1e-6, atol=1e-6)
        assert known == {"perceptibility": perceptibility(r), "largest": abs(r).max()}
    keys = [store.read_header(source)["key"] for source in sources]
    assert store.read_header(tmp_path / "sum.h5")["sum"] == keys


def test_shards_of_other_images_are_not_added(tmp_path):
    first = shard(tmp_path / "1.h5", "perturbations", {x: noise(x) for x in IDS})
    second = shard(tmp_path / "2.h5", "perturbations", {x: noise(x) for x in IDS[:2]})
    with pytest.raises(ValueError, match="2.h5: holds other images than .*1.h5; delete the older one"):
        combinations.combine([first, second], tmp_path / "sum.h5", "code")


def kept(kind: str, r: np.ndarray):
    """What a control keeps of a perturbation."""
    if kind == "permuted":
        return np.sort(r.ravel())
    return abs(r) if kind == "signs" else perceptibility(r)


@pytest.mark.parametrize("kind", CONTROLS)
def test_draws_of_a_control_of_a_shard(tmp_path, kind):
    source = shard(tmp_path / "0.h5", "perturbations", {x: noise(x) for x in IDS})
    single = shard(tmp_path / "single.h5", "perturbations", {"b": noise("b")})
    draws = {}
    for draw in (1, 2):
        path = tmp_path / f"{draw}.h5"
        combinations.control(source, path, kind=kind, name="net", draw=draw, seed=1, code="code")
        draws[draw] = {x: store.read(path, x)[0] for x in IDS}
        for image_id in IDS:
            np.testing.assert_allclose(kept(kind, draws[draw][image_id]), kept(kind, noise(image_id)), rtol=1e-6)
    assert any(not np.array_equal(draws[1][x], draws[2][x]) for x in IDS)
    # an image is drawn alike whatever shard it lies in
    combinations.control(single, tmp_path / "again.h5", kind=kind, name="net", draw=2, seed=1, code="code")
    assert np.array_equal(store.read(tmp_path / "again.h5", "b")[0], draws[2]["b"])
    # and the header tells kinds, draws, seeds and names apart
    keys = set()
    other = "signs" if kind != "signs" else "permuted"
    for one, name, draw, seed in [(kind, "net", 1, 1), (kind, "net", 2, 1), (kind, "net", 1, 2), (kind, "other", 1, 1),
                                  (other, "net", 1, 1)]:  # fmt: skip
        combinations.control(source, tmp_path / "x.h5", kind=one, name=name, draw=draw, seed=seed, code="code")
        keys.add(store.read_header(tmp_path / "x.h5")["key"])
    assert len(keys) == 5


def test_multiples_of_a_shard(tmp_path):
    source = shard(tmp_path / "0.h5", "perturbations", {x: noise(x) for x in IDS})
    keys = set()
    for p in (0.002, 0.004):
        combinations.scaled(source, tmp_path / "scaled.h5", p=p, code="code")
        for image_id in IDS:
            r, known = store.read(tmp_path / "scaled.h5", image_id, "perturbations")
            np.testing.assert_allclose(r, noise(image_id) * (p / perceptibility(noise(image_id))), rtol=1e-5)
            assert known["perceptibility"] == pytest.approx(p, rel=1e-6)
        keys.add(store.read_header(tmp_path / "scaled.h5")["key"])
    assert len(keys) == 2


# Cells


IDENTITY = {"network": "fake", "weights": "1"}


def cells_of(folder: Path, sources: dict, pixels=("float",), identity=IDENTITY) -> list[cells.Cell]:
    return cells.cells_of(folder, "victim", "0000", sources, list(pixels), identity)


class Threshold(Segmenter):
    """Says 5 where the red value is above 127.5; remembers what it has seen."""

    labels = (0, 5)

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, images):
        self.seen.append(images[0].numpy().copy())
        return torch.stack([127.5 - images[:, 0], images[:, 0] - 127.5], 1)


class OneBox(Detector):
    """Finds one box, or none in a dark image."""

    labels = (0, 7)

    def detect(self, images):
        count = int(images.mean() > 100)
        return [Detections(torch.full((count, 4), 1.5), torch.full((count,), 7), torch.full((count,), 0.25))]


IMAGES = [np.full(SHAPE, value, np.float32) for value in (0, 127, 255)]


def shown(network, made: list[cells.Cell], **options) -> int:
    return predict.predict(
        {"victim": network}, dict(zip(IDS, IMAGES, strict=True)).__getitem__, IDS, made, **options
    ).total()


@pytest.fixture
def source(tmp_path) -> Path:
    return shard(tmp_path / "r.h5", "perturbations", {x: np.full(SHAPE, 0.75, np.float32) for x in IDS}, {"r": 1})


def test_a_cell_of_every_perturbation_and_pixels(tmp_path, source):
    made = cells_of(tmp_path / "p", {"none": None, "net": source}, ("float", "8-bit"))
    assert [(cell.perturbation, cell.pixels) for cell in made] == [
        ("none", "float"), ("none", "8-bit"), ("net", "float"), ("net", "8-bit")
    ]  # fmt: skip
    assert made[3].path == tmp_path / "p" / "victim" / "net.8-bit" / "0000.h5"
    assert len({store.key(cell.header) for cell in made}) == 4
    assert made[2].header == IDENTITY | {
        "perturbation": "net", "perturbation_key": store.key({"r": 1}), "pixels": "float"
    }  # fmt: skip


def test_predictions_are_those_of_the_perturbed_image(tmp_path, source):
    network = Threshold()
    made = cells_of(tmp_path / "p", {"none": None, "net": source}, ("float", "8-bit"))
    shown(network, made)
    red = [image[0, 0, 0] for image in network.seen]
    assert red == [0, 0, 0.75, 1, 127, 127, 127.75, 128, 255, 255, 255, 255]
    assert all(image.shape == SHAPE and len(np.unique(image)) == 1 for image in network.seen)
    expected = {("none", "float"): [0, 0, 5], ("none", "8-bit"): [0, 0, 5], ("net", "float"): [0, 5, 5]}
    for cell in made:
        for image_id, label in zip(IDS, expected.get((cell.perturbation, cell.pixels), [0, 5, 5]), strict=True):
            array, known = store.read(cell.path, image_id, "predictions")
            assert array.dtype == np.uint8 and array.shape == (2, 2) and (array == label).all()
            size = 0.75 if cell.source else 0
            assert known == {"perceptibility": pytest.approx(math.sqrt(3) * size / 255), "largest": size}


def test_detections_are_stored_as_rows(tmp_path):
    (cell,) = cells_of(tmp_path / "p", {"none": None})
    shown(OneBox(), [cell])
    array, _ = store.read(cell.path, "c")
    assert array.dtype == np.float32 and array.tolist() == [[1.5, 1.5, 1.5, 1.5, 7, 0.25]]
    assert store.read(cell.path, "a")[0].shape == (0, 6)
    found = cells.detections_of(array)
    assert found["labels"].tolist() == [7] and found["labels"].dtype == np.int64
    assert found["boxes"].shape == (1, 4) and found["scores"].tolist() == [0.25]


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def test_done_is_what_has_the_right_key(tmp_path, source):
    (cell,) = cells_of(tmp_path / "p", {"net": source})
    assert not cell.done()
    shown(Threshold(), [cell])
    assert cell.done()
    others = cells_of(tmp_path / "p", {"net": source}, identity=IDENTITY | {"weights": "2"})
    assert others[0].path == cell.path and not others[0].done()
    shard(source, "perturbations", {x: noise(x) for x in IDS}, {"r": 2})
    assert not cells_of(tmp_path / "p", {"net": source})[0].done()
    damage(cell.path)
    assert not cell.done()
    cell.path.write_text("no HDF5")
    assert not cell.done()
    shard(cell.path, "perturbations", {x: noise(x) for x in IDS}, cell.header)
    assert not cell.done()


def test_only_missing_cells_are_computed(tmp_path, source):
    network = Threshold()
    shown(network, cells_of(tmp_path / "p", {"none": None, "net": source}))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("p/**/*.h5")}
    assert len(before) == 2 and len(network.seen) == 6

    more = shard(tmp_path / "more.h5", "perturbations", {x: noise(x) for x in IDS})
    made = cells_of(tmp_path / "p", {"none": None, "net": source, "more": more})
    shown(network, made)
    assert len(network.seen) == 9
    assert {path: path.stat().st_mtime_ns for path in before} == before
    shown(network, made)
    assert len(network.seen) == 9

    # a damaged one and one of older weights are replaced
    damage(made[1].path)
    shown(network, made)
    assert len(network.seen) == 12 and made[1].done()
    shown(network, cells_of(tmp_path / "p", {"none": None}, identity={"weights": "2"}))
    assert len(network.seen) == 15 and not made[0].done() and made[2].done()


def test_an_interrupted_cell_is_continued(tmp_path, source):
    class Breaks(Threshold):
        def forward(self, images):
            if len(self.seen) == 2:
                raise KeyboardInterrupt
            return super().forward(images)

    (cell,) = cells_of(tmp_path / "p", {"net": source})
    with pytest.raises(KeyboardInterrupt):
        shown(Breaks(), [cell])
    network = Threshold()
    shown(network, [cell])
    assert cell.done() and len(network.seen) == 1


def test_two_processes_do_not_compute_the_same_cell(tmp_path):
    """Another process holds the cell and finishes it; this one waits and then has nothing to do."""
    (cell,) = cells_of(tmp_path / "p", {"none": None})
    program = (
        f"import sys, time; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        "import numpy as np\nfrom pathlib import Path\nfrom dag.evaluate import cells\nfrom dag.workflow import store\n"
        f"(cell,) = cells.cells_of(Path({str(tmp_path / 'p')!r}), 'victim', '0000', {{'none': None}}, ['float'], "
        f"{IDENTITY!r})\n"
        "with store.writing(cell.path, 'predictions', ['a', 'b', 'c'], cell.header) as shard:\n"
        "    print('mine', flush=True)\n"
        "    for image_id in 'abc':\n"
        "        time.sleep(0.2)\n"
        "        shard.put(image_id, np.full((2, 2), 9, np.uint8), {'perceptibility': 0.0, 'largest': 0.0})\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline() == b"mine\n"
        network = Threshold()
        shown(network, [cell])
    finally:
        child.communicate(timeout=20)
    assert child.returncode == 0 and not network.seen
    assert (store.read(cell.path, "a")[0] == 9).all()


class Chance(Segmenter):
    """Says 5 where a random number falls below a share that the red value decides."""

    labels, stochastic = (0, 5), True

    def forward(self, images):
        drawn = torch.rand(images[:, 0].shape)
        return torch.stack([drawn, images[:, 0] / 400 + 0.2], 1)


def test_chance_does_not_depend_on_the_order_of_work(tmp_path):
    """Shards, batches, other cells and interruptions leave the random numbers of a cell and an image alone."""
    shape = (3, 8, 9)
    images = {x: np.full(shape, 100, np.float32) for x in IDS}
    sources = {"none": None} | noisy_shards(tmp_path, 2, shape)

    def predicted(name: str, ids=tuple(IDS), names=tuple(sources), seed=0, **options) -> dict:
        chosen = {name: sources[name] for name in names}
        made = cells_of(tmp_path / name, chosen, ("float", "8-bit"))
        predict.predict({"victim": Chance()}, images.__getitem__, ids, made, seed=seed, **options)
        return {(c.perturbation, c.pixels, i): store.read(c.path, i)[0].tolist() for c in made for i in ids}

    before = torch.random.get_rng_state()
    whole = predicted("whole")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert len({str(array) for array in whole.values()}) == len(whole)  # each cell and image has its own
    assert predicted("batches", batch=4) == whole
    assert predicted("order", names=("p1", "none", "p0")) == whole
    alone = {}
    for image_id in reversed(IDS):
        alone |= predicted(f"shard-{image_id}", ids=(image_id,))
    assert alone == whole
    (tmp_path / "late").mkdir()
    half = predicted("late", names=("p1",))
    assert predicted("late") == whole and half.items() <= whole.items()
    assert predicted("other", seed=1) != whole


PIXELS = ("float", "8-bit", "jpeg-75")


def noisy_shards(folder: Path, count: int, shape: tuple[int, int, int]) -> dict[str, Path]:
    rng = np.random.default_rng(3)
    return {
        f"p{number}": shard(
            folder / f"p{number}.h5", "perturbations", {x: rng.normal(0, 9, shape).astype(np.float32) for x in IDS}
        )
        for number in range(count)
    }


def test_what_a_victim_sees_is_the_perturbed_image_bit_for_bit(tmp_path):
    """Pixels that are made on the device are those of `arithmetic.apply`."""
    shape = (3, 16, 24)
    images = {x: np.random.default_rng(number).uniform(0, 255, shape).astype(np.float32).round()
              for number, x in enumerate(IDS)}  # fmt: skip
    sources = noisy_shards(tmp_path, 3, shape)
    network = Threshold()
    predict.predict({"victim": network}, images.__getitem__, IDS, cells_of(tmp_path / "p", sources, PIXELS))
    expected = [
        arithmetic.apply(images[x], store.read(source, x)[0], kind)
        for x in IDS for source in sources.values() for kind in PIXELS
    ]  # fmt: skip
    assert len(network.seen) == len(expected) == 27
    for seen, wanted in zip(network.seen, expected, strict=True):
        assert seen.dtype == wanted.dtype == np.float32 and np.array_equal(seen, wanted)


def stored(made: list[cells.Cell]) -> dict:
    return {(cell.perturbation, cell.pixels, x): store.read(cell.path, x)[0].tobytes() for cell in made for x in IDS}


def test_a_prediction_does_not_depend_on_what_is_computed_beside_it(tmp_path):
    """Alone, with others, after an interruption: batches have one size, and its rows do not see each other."""
    shape = (3, 48, 64)
    images = {x: np.random.default_rng(number).uniform(0, 255, shape).astype(np.float32).round()
              for number, x in enumerate(IDS)}  # fmt: skip
    sources = noisy_shards(tmp_path, 3, shape)
    network = build("dag.networks.mini.fcn:fcn", {"body": "alex", "labels": [0, 3, 7], "width": 16})
    sizes, scores, original = [], {}, network.body

    def body(batch):
        sizes.append(len(batch))
        low = original(batch)
        for image, row in zip(batch, low, strict=True):  # copies that fill up are the same, too
            assert torch.equal(scores.setdefault(image.numpy().tobytes(), row), row)
        return low

    network.body = body

    def run(name, names, **options):
        made = cells_of(tmp_path / name, {x: sources[x] for x in names}, PIXELS[:2])
        predict.predict({"victim": network}, images.__getitem__, IDS, made, **options).total()
        return stored(made)

    together = run("together", sources, batch=4)
    assert sizes == [4, 4] * 3  # 3 perturbations with 2 kinds of pixels: one batch, and one filled up
    alone = {}
    for name in sources:
        alone |= run("alone", [name], batch=4)
    assert set(sizes) == {4} and alone == together
    # one by one, as on a CPU: label maps are the same
    sizes.clear()
    scores.clear()
    assert run("single", sources) == together
    assert sizes == [1] * 18


@pytest.mark.parametrize("architecture", ["faster_rcnn:faster_rcnn", "rfcn:rfcn"])
def test_detections_do_not_depend_on_what_is_computed_beside_them(architecture, tmp_path):
    """The proposals of every image are filled up: the second stage has as many rows whatever is beside it."""
    shape, most = (3, 48, 64), 500
    images = {x: np.random.default_rng(number).uniform(0, 255, shape).astype(np.float32).round()
              for number, x in enumerate(IDS)}  # fmt: skip
    sources = noisy_shards(tmp_path, 3, shape)
    torch.manual_seed(3)
    network = build(f"dag.networks.mini.{architecture}", {"body": "alex", "labels": [0, 3, 7], "width": 16})
    network.proposals, network.lowest = most, 0.0
    counts, rows, select, original = set(), [], network.select, network.regions

    def selected(*arguments, **options):
        found = select(*arguments, **options)
        counts.update(len(one) for one in found)
        return found

    def regions(features, proposals):
        rows.append([len(one) for one in proposals])
        return original(features, proposals)

    network.select, network.regions = selected, regions

    def run(name, names, **options):
        made = cells_of(tmp_path / name, {x: sources[x] for x in names}, PIXELS[:2])
        predict.predict({"victim": network}, images.__getitem__, IDS, made, **options).total()
        return stored(made)

    together = run("together", sources, batch=4)
    assert len(counts) > 1 and max(counts) < most  # so there is something to fill up
    alone = {}
    for name in sources:
        alone |= run("alone", [name], batch=4)
    assert alone == together
    assert all(one == [most] * 4 for one in rows)
    # one by one, as on a CPU, nothing is filled up, and the detections are the same but for rounding
    rows.clear()
    single = run("single", sources)
    assert {len(one) for one in rows} == {1} and {one[0] for one in rows} == counts
    for cell, found in single.items():
        apart = np.frombuffer(found, np.float32) - np.frombuffer(together[cell], np.float32)
        assert np.abs(apart).max() < 1e-3


def test_an_image_and_its_perturbations_are_read_once_for_all_victims(tmp_path, monkeypatch):
    sources = noisy_shards(tmp_path, 2, SHAPE)
    read, opened = [], []
    original = store.get
    monkeypatch.setattr(
        store, "get", lambda file, image_id, names: opened.append(image_id) or original(file, image_id, names)
    )
    images = dict(zip(IDS, IMAGES, strict=True))
    made = [
        cell
        for victim in ("first", "second")
        for cell in cells.cells_of(tmp_path / "p", victim, "0000", {"none": None} | sources, PIXELS, {"of": victim})
    ]
    victims = {"first": Threshold(), "second": Threshold()}
    assert predict.predict(victims, lambda x: read.append(x) or images[x], IDS, made) == {"first": 9, "second": 9}
    assert read == IDS and sorted(opened) == sorted(2 * IDS)
    assert len(victims["first"].seen) == len(victims["second"].seen) == 27


@pytest.mark.parametrize(("most_cells", "most_perturbations"), [(4, 16), (128, 2), (1, 1)])
def test_groups_bound_what_is_open_and_change_nothing(tmp_path, monkeypatch, most_cells, most_perturbations):
    sources = noisy_shards(tmp_path, 5, SHAPE)
    whole = cells_of(tmp_path / "whole", sources, PIXELS[:2])
    shown(Threshold(), whole)
    monkeypatch.setattr(predict, "MOST_CELLS", most_cells)
    monkeypatch.setattr(predict, "MOST_PERTURBATIONS", most_perturbations)
    parts, held, most = cells_of(tmp_path / "parts", sources, PIXELS[:2]), set(), []

    def writing(path, *arguments, **options):
        @contextmanager
        def counted():
            held.add(path)
            most.append(len(held))
            with original(path, *arguments, **options) as shard:
                yield shard
            held.remove(path)

        return counted()

    original = store.writing
    monkeypatch.setattr(store, "writing", writing)
    seen = []
    shown(Threshold(), parts, progress=lambda items, total: seen.append(total) or items)
    assert stored(parts) == stored(whole)
    assert max(most) == min(2 * most_perturbations, max(2, most_cells))
    assert seen == [3 * -(-10 // max(most))]


def test_cells_of_another_job_are_waited_for_last(tmp_path, source):
    """While there is work, nobody waits: what another job holds comes at the end, and is not computed twice."""
    first, second = cells_of(tmp_path / "p", {"none": None, "net": source})
    network, threads = Threshold(), []
    with ExitStack() as stack:
        other = stack.enter_context(store.writing(first.path, "predictions", IDS, first.header))

        def finish():
            while not second.done():
                time.sleep(0.01)
            for x in IDS:
                other.put(x, np.full((2, 2), 9, np.uint8), {"perceptibility": 0.0, "largest": 0.0})
            closing.close()

        closing = stack.pop_all()
        threads.append(threading.Thread(target=finish))
        threads[0].start()
        assert shown(network, [first, second]) == 1
        threads[0].join()
    assert len(network.seen) == 3 and (store.read(first.path, "a")[0] == 9).all()


def test_a_batch_that_does_not_fit_is_halved(tmp_path, source, capsys):
    class Small(Threshold):
        def forward(self, images):
            if len(images) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(images)

    made = cells_of(tmp_path / "p", {"none": None, "net": source}, PIXELS)
    shown(Small(), made, batch=8)
    assert "victim: out of memory, 4 images share a pass now\nvictim: out of memory, 2 " in capsys.readouterr().err
    whole = cells_of(tmp_path / "whole", {"none": None, "net": source}, PIXELS)
    shown(Threshold(), whole)
    assert stored(made) == stored(whole)


def test_a_full_disk_beside_the_network_is_an_error_of_the_job(tmp_path, source, monkeypatch):
    made = cells_of(tmp_path / "p", {"none": None, "net": source})

    def full(shard, image_id, *_):
        if image_id == "b":
            raise OSError("p.h5: cannot be written, the disk is full")
        original(shard, image_id, *_)

    original = store.Writer.put
    with monkeypatch.context() as patched:
        patched.setattr(store.Writer, "put", full)
        with pytest.raises(OSError, match="the disk is full"):
            shown(Threshold(), made)
    network = Threshold()
    shown(network, made)
    assert {float(image.min()) for image in network.seen} >= {127, 127.75}
    assert not {float(image.min()) for image in network.seen} & {0, 0.75}  # the first image is kept in both cells


def test_a_manifest_names_the_shards_of_a_table(tmp_path, source):
    made = cells_of(tmp_path / "p", {"none": None, "net": source}, ("float", "8-bit"))
    shown(Threshold(), made)
    manifest = tmp_path / "cells.json"
    cells.write_manifest(manifest, made)
    assert cells.read_manifest(manifest) == {
        ("victim", cell.perturbation, cell.pixels): cell.path for cell in made
    }  # fmt: skip
    shown(Threshold(), cells_of(tmp_path / "p", {"none": None}, identity={"new": 1}))
    with pytest.raises(ValueError, match=r"none.float/0000.h5: not the shard that .*cells.json names; delete"):
        cells.read_manifest(manifest)
    made[0].path.unlink()
    with pytest.raises(ValueError, match="none.float/0000.h5: no such shard; run the workflow to make it"):
        cells.read_manifest(manifest)


@pytest.mark.parametrize("content", [b"", b'{"cells": [{"vic', b"\x89HDF"])
def test_a_damaged_manifest_is_one_sentence(tmp_path, content):
    (tmp_path / "cells.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"cells.json: not a list of cells; delete it and run the workflow again$"):
        cells.read_manifest(tmp_path / "cells.json")


def test_predictions_of_images_that_have_changed_are_refused(tmp_path):
    made = cells_of(tmp_path / "p", {"none": None}, identity=IDENTITY | {"contents": {"image": "1"}})
    shown(Threshold(), made)
    manifest = tmp_path / "cells.json"
    cells.write_manifest(manifest, made)
    cells.check_images(manifest, {"image": "1"})
    with pytest.raises(ValueError, match="cells.json: the images have changed since they were predicted; delete it"):
        cells.check_images(manifest, {"image": "2"})
    # the next run replaces the cells
    (changed,) = cells_of(tmp_path / "p", {"none": None}, identity=IDENTITY | {"contents": {"image": "2"}})
    assert made[0].done() and not changed.done() and changed.path == made[0].path


# Scores by hand

TRUTH = {"a": [[0, 1], [1, 255]], "b": [[0, 0], [2, 2]], "c": [[1, 1], [0, 0]]}
CLEAN = {"a": [[0, 1], [0, 1]], "b": [[0, 2], [2, 2]], "c": [[1, 1], [0, 0]]}
NOTHING = {image_id: [[0, 0], [0, 0]] for image_id in TRUTH}
OBJECT = "<object><name>{}</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></object>"


@pytest.fixture
def root(tmp_path) -> Path:
    """A VOC year of three images, 2 x 2 pixels, with one aeroplane each."""
    root = tmp_path / "voc"
    for folder in ("JPEGImages", "SegmentationClass", "Annotations"):
        (root / folder).mkdir(parents=True)
    for image_id, labels in TRUTH.items():
        Image.new("RGB", (2, 2)).save(root / "JPEGImages" / f"{image_id}.jpg")
        Image.fromarray(np.array(labels, np.uint8)).save(root / "SegmentationClass" / f"{image_id}.png")
        (root / "Annotations" / f"{image_id}.xml").write_text(f"<annotation>{OBJECT.format('aeroplane')}</annotation>")
    return root


def label_maps(maps: dict) -> dict[str, np.ndarray]:
    return {image_id: np.array(labels, np.uint8) for image_id, labels in maps.items()}


def hit(score: float, label: int = 1) -> np.ndarray:
    return np.array([[0, 0, 1, 1, label, score]], np.float32)


def miss(score: float) -> np.ndarray:
    return np.array([[40, 40, 50, 50, 1, score]], np.float32)


def scored(
    folder: Path, root: Path, predictions: dict, *, task="segmentation", split=(3,), resamples=20, seed=0, **more
):
    """Scores by (perturbation, pixels) of predictions {(perturbation, pixels): {id: array}}."""
    manifests, start = [], 0
    for number, size in enumerate(split):
        made = []
        for (name, pixels), arrays in predictions.items():
            path = folder / f"{name}.{pixels}" / f"{number:04d}.h5"
            header = {"name": name, "pixels": pixels, "shard": number}
            chosen = {image_id: arrays[image_id] for image_id in IDS[start : start + size]}
            known = {"perceptibility": 0.001 * (start + 1), "largest": 1.0 + start}
            shard(path, "predictions", chosen, header, **known)
            made.append(cells.Cell("victim", name, pixels, None, path, header))
        manifests.append(folder / f"{number:04d}.json")
        cells.write_manifest(manifests[-1], made)
        start += size
    networks = {"victim": {"label": "Victim", "task": task}}
    images = [(root, image_id) for image_id in IDS[: sum(split)]]
    (found,) = score.score(manifests, images, networks, resamples=resamples, seed=seed, **more)
    assert (found["victim"], found["label"], found["task"], found["images"]) == ("victim", "Victim", task, sum(split))
    json.dumps(found, allow_nan=False)
    return found, {(cell["perturbation"], cell["pixels"]): cell for cell in found["cells"]}


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_of_a_single_image_no_error_is_known(tmp_path, root, task):
    """All of its resamples are the image itself; a spread of zero would be a claim."""
    clean, lost = (
        (label_maps(CLEAN), label_maps(NOTHING))
        if task == "segmentation"
        else ({i: hit(0.9) for i in IDS}, {i: np.zeros((0, 6), np.float32) for i in IDS})
    )
    predictions = {("none", "float"): clean, ("net", "float"): lost, ("net.permuted-1", "float"): clean}
    _, table = scored(tmp_path / "p", root, predictions, task=task, split=(1,))
    cell = table["net", "float"]
    assert cell["drop"] > 0
    for key in ("score_se", "companion_se", "drop_se", "drop_low", "drop_high"):
        assert cell[key] is None, key
    assert cell["beyond"]["permuted"] == {"difference": cell["drop"], "low": None, "high": None}


def test_miou_by_hand(tmp_path, root):
    """Clean: background 4 of 6, aeroplane 3 of 4, bicycle 2 of 3.  Under the perturbation everything is background:
    5 of 11, and nothing of the others."""
    predictions = {("none", "float"): label_maps(CLEAN), ("net", "float"): label_maps(NOTHING)}
    found, table = scored(tmp_path / "p", root, predictions)
    assert (found["metric"], found["companion_metric"]) == ("mIoU", "foreground mIoU")
    clean, attacked = table["none", "float"], table["net", "float"]
    assert clean["score"] == pytest.approx(100 * (4 / 6 + 3 / 4 + 2 / 3) / 3)
    assert clean["companion"] == pytest.approx(100 * (3 / 4 + 2 / 3) / 2)
    assert clean["drop"] == 0 and clean["drop_se"] == 0
    assert attacked["score"] == pytest.approx(100 * 5 / 11 / 3) and attacked["companion"] == 0
    assert attacked["drop"] == pytest.approx(clean["score"] - attacked["score"])
    assert clean["per_class"]["aeroplane"] == pytest.approx(75) and clean["per_class"]["sofa"] is None
    assert clean["per_class"]["background"] == pytest.approx(200 / 3)
    assert attacked["perceptibility"] == pytest.approx(0.001) and attacked["linf"] == 1


def test_several_draws_of_an_attack_are_one_cell(tmp_path, root):
    """Every image alike under each draw, so that all error is that of the draws: s^2 / N of their scores."""
    hit_all, half = {i: hit(0.9) for i in IDS}, {"a": hit(0.9), "b": hit(0.9), "c": hit(0.9)}
    nothing = {i: np.zeros((0, 6), np.float32) for i in IDS}
    predictions = {
        ("none", "float"): hit_all,
        ("net", "float"): nothing,
        ("net.drawn-2", "float"): half,
        ("net.drawn-3", "float"): nothing,
        ("net.permuted-1", "float"): hit_all,
    }
    names = ["net", "net.drawn-2", "net.drawn-3"]
    draws = {"victim": {"net": names}}
    _, table = scored(tmp_path / "p", root, predictions, task="detection", resamples=4000, draws=draws)
    cell = table["net", "float"]
    assert cell["score"] == pytest.approx(100 / 3) and cell["drop"] == pytest.approx(200 / 3) and cell["draws"] == 3
    # scores 0, 100, 0: s = 57.7, s / sqrt(3) = 33.3; the error of a deviation of 4000 values is 1.1 %
    assert cell["score_se"] == pytest.approx(100 / 3, rel=0.05) and cell["drop_se"] == pytest.approx(100 / 3, rel=0.05)
    assert cell["beyond"]["permuted"]["difference"] == pytest.approx(200 / 3)
    assert table["net.drawn-2", "float"]["score"] == 100 and "draws" not in table["net.drawn-2", "float"]
    assert ("net.drawn", "float") not in table
    alone = scored(tmp_path / "q", root, predictions, task="detection")[1]["net", "float"]
    assert alone["score"] == 0 and alone["score_se"] == 0 and "draws" not in alone


def test_cells_say_what_an_ensemble_was_made_from(tmp_path, root):
    predictions = {(name, "float"): label_maps(CLEAN) for name in ("none", "net@both", "net@both.permuted-1")}
    _, table = scored(tmp_path / "p", root, predictions, ensembles={"net@both": ["net", "other"]})
    assert table["net@both", "float"]["made_from"] == ["net", "other"]
    assert not any("made_from" in table[name, "float"] for name in ("none", "net@both.permuted"))


def test_equal_draws_add_nothing(tmp_path, root):
    maps = {"a": CLEAN["a"], "b": NOTHING["b"], "c": CLEAN["c"]}
    predictions = {(name, "float"): label_maps(maps) for name in ("net", "net.drawn-2")}
    predictions = {("none", "float"): label_maps(CLEAN)} | predictions
    draws = {"victim": {"net": ["net", "net.drawn-2"]}}
    _, table = scored(tmp_path / "p", root, predictions, draws=draws)
    one, both = table["net.drawn-2", "float"], table["net", "float"]
    for key in ("score", "score_se", "companion_se", "drop_low", "drop_high", "per_class", "perceptibility"):
        assert both[key] == pytest.approx(one[key]), key


def test_coco_ap_by_hand(tmp_path, root):
    """The same at 101 recalls: 0, .01, ... .33 with precision 1, .34, ... .66 with 2/3, 34 and 33 of 101."""
    clean = {"a": hit(0.9), "b": hit(0.5), "c": miss(0.7)}
    found, table = scored(
        tmp_path / "p", root, {("none", "float"): clean}, task="detection", companion="COCO AP", resamples=50
    )
    assert (found["metric"], found["companion_metric"]) == ("mAP", "COCO AP")
    assert table["none", "float"]["companion"] == pytest.approx(100 * (34 + 33 * 2 / 3) / 101)
    assert table["none", "float"]["companion_se"] > 1


def test_scores_of_every_resample_are_those_behind_the_intervals(tmp_path, root):
    predictions = {("none", "float"): label_maps(CLEAN), ("net", "float"): label_maps(NOTHING)}
    _, table = scored(tmp_path / "p", root, predictions, split=(2, 1), resamples=50, seed=3)
    manifests, images = (
        [tmp_path / "p" / f"000{number}.json" for number in (0, 1)],
        [(root, image_id) for image_id in IDS],
    )
    networks = {"victim": {"task": "segmentation"}}
    found = score.resampled_scores(manifests, images, networks, resamples=50, seed=3)
    assert set(found) == {("victim", "none", "float"), ("victim", "net", "float")}
    clean, attacked = (found["victim", name, "float"][0] for name in ("none", "net"))
    assert len(clean) == 51 and clean[0] == table["none", "float"]["score"]
    drop, cell = clean - attacked, table["net", "float"]
    assert np.std(attacked[1:], ddof=1) == pytest.approx(cell["score_se"])
    assert np.quantile(drop[1:], [0.025, 0.975]) == pytest.approx([cell["drop_low"], cell["drop_high"]])
    assert found["victim", "net", "float"][1]["perceptibility"] == pytest.approx(cell["perceptibility"])


def test_map_by_hand(tmp_path, root):
    """Three aeroplanes; hits at 0.9 and 0.5, a miss at 0.7: precision 1 up to recall 1/3, 2/3 up to 2/3."""
    clean = {"a": hit(0.9), "b": hit(0.5), "c": miss(0.7)}
    attacked = {"a": np.zeros((0, 6), np.float32), "b": hit(0.9, label=2), "c": hit(0.1)}
    found, table = scored(
        tmp_path / "p", root, {("none", "float"): clean, ("net", "float"): attacked}, task="detection"
    )
    assert (found["metric"], found["companion_metric"]) == ("mAP", "area mAP")
    assert table["none", "float"]["score"] == pytest.approx(100 * (4 + 3 * 2 / 3) / 11)
    assert table["none", "float"]["companion"] == pytest.approx(100 * (1 / 3 + 2 / 9))
    # one of three found with precision 1: four of eleven points; the bicycle is in no image and takes no part
    assert table["net", "float"]["score"] == pytest.approx(400 / 11)
    assert table["net", "float"]["per_class"]["bicycle"] is None


def worst_of_two(folder: Path, root: Path, one: dict, other: dict, clean: dict, task: str) -> tuple[dict, dict, dict]:
    """Cells of two attacks and of the worst of both."""
    table = {("none", "float"): clean, ("net@x", "float"): one, ("net@y", "float"): other}
    worst = {"victim": {"worst of all@8": ["net@x", "net@y"]}}
    _, found = scored(folder, root, table, task=task, worst=worst)
    return tuple(found[name, "float"] for name in ("net@x", "net@y", "worst of all@8"))


def test_the_worst_of_two_segmentation_attacks_by_hand(tmp_path, root):
    # x leaves image a alone, y the others: together everything is background
    x = label_maps({"a": CLEAN["a"], "b": NOTHING["b"], "c": NOTHING["c"]})
    y = label_maps({"a": NOTHING["a"], "b": CLEAN["b"], "c": CLEAN["c"]})
    one, other, worst = worst_of_two(tmp_path / "p", root, x, y, label_maps(CLEAN), "segmentation")
    assert worst["score"] == pytest.approx(100 * 5 / 11 / 3) and worst["score"] < min(one["score"], other["score"])
    assert worst["chosen"] == {"net@x": 2, "net@y": 1} and "chosen" not in one
    assert worst["also"]["pixel accuracy"]["value"] == pytest.approx(100 * 5 / 11)


def test_the_worst_of_two_detection_attacks_by_hand(tmp_path, root):
    gone = np.zeros((0, 6), np.float32)
    x, y = {"a": hit(0.9), "b": gone, "c": gone}, {"a": gone, "b": hit(0.9), "c": miss(0.4)}
    one, other, worst = worst_of_two(tmp_path / "p", root, x, y, dict.fromkeys(IDS, hit(0.9)), "detection")
    assert worst["score"] == 0 and one["score"] == other["score"] == pytest.approx(400 / 11)
    assert worst["chosen"] == {"net@x": 1, "net@y": 2}  # on c both find nothing, y something false


def test_the_worst_is_not_above_a_single_attack(tmp_path, root):
    # Image by image x is worse (its false positives come first), for the set y is: what it finds comes last.
    x = {image_id: np.concatenate([miss(0.9 - k / 10), hit(0.8 - k / 10)]) for k, image_id in enumerate(IDS)}
    y = {"a": hit(0.1), "b": np.concatenate([miss(0.9)] * 9), "c": np.concatenate([miss(0.8)] * 9)}
    one, other, worst = worst_of_two(tmp_path / "p", root, x, y, dict.fromkeys(IDS, hit(0.9)), "detection")
    assert worst["score"] <= min(one["score"], other["score"]) + 1e-12


def resampled(predictions: dict, weights: np.ndarray) -> np.ndarray:
    """mIoU of every resample, from images that are really repeated."""
    values = []
    for row in weights:
        ids = [image_id for image_id, count in zip(IDS, row, strict=True) for _ in range(count)]
        truth = np.concatenate([np.ravel(TRUTH[image_id]) for image_id in ids])
        seen = np.concatenate([np.ravel(predictions[image_id]) for image_id in ids])
        seen, truth = seen[truth != 255], truth[truth != 255]
        parts = [((truth == c) & (seen == c)).sum() / ((truth == c) | (seen == c)).sum() for c in {*truth, *seen}]
        values.append(100 * np.mean(parts))
    return np.array(values)


def test_errors_are_those_of_repeated_images(tmp_path, root):
    predictions = {("none", "float"): label_maps(CLEAN), ("net", "float"): label_maps(NOTHING)}
    _, table = scored(tmp_path / "p", root, predictions, resamples=12, seed=3)
    weights = metrics.bootstrap_weights(3, 12, int(generator("bootstrap", 3).integers(2**31)))
    clean, attacked = resampled(CLEAN, weights), resampled(NOTHING, weights)
    assert table["none", "float"]["score_se"] == pytest.approx(clean.std(ddof=1))
    assert table["net", "float"]["score_se"] == pytest.approx(attacked.std(ddof=1))
    assert table["net", "float"]["drop_se"] == pytest.approx((clean - attacked).std(ddof=1))
    # of 12 resamples, 2.5 % lie 0.275 of the way from the smallest to the next
    smallest, second, *_, before, largest = sorted(clean - attacked)
    assert table["net", "float"]["drop_low"] == pytest.approx(smallest + 0.275 * (second - smallest))
    assert table["net", "float"]["drop_high"] == pytest.approx(largest - 0.275 * (largest - before))


def test_the_error_of_a_drop_is_paired(tmp_path, root):
    """Where the perturbation costs every image the same, its drop is sure though both scores are not."""
    quality = {"a": [[0, 1], [1, 1]], "b": [[0, 0], [0, 2]], "c": [[1, 1], [1, 1]]}
    # the same predictions: the drop is 0 in every resample, the scores vary
    predictions = {("none", "float"): label_maps(quality), ("net", "float"): label_maps(quality)}
    _, table = scored(tmp_path / "p", root, predictions)
    assert table["net", "float"]["score_se"] > 1 and table["net", "float"]["drop_se"] == 0
    # detection scores lowered alike
    clean = {"a": hit(0.9), "b": miss(0.5), "c": hit(0.7)}
    lower = {image_id: rows - np.float32([0, 0, 0, 0, 0, 0.05]) for image_id, rows in clean.items()}
    lower["b"] = np.concatenate([lower["b"], miss(0.01)])
    _, table = scored(tmp_path / "q", root, {("none", "float"): clean, ("net", "float"): lower}, task="detection")
    cell = table["net", "float"]
    naive = math.hypot(table["none", "float"]["score_se"], cell["score_se"])
    assert naive > 1 and cell["drop_se"] < 0.1 * naive


def test_the_control_is_the_mean_of_its_draws(tmp_path, root):
    predictions = {
        ("none", "float"): label_maps(CLEAN),
        ("net", "float"): label_maps(NOTHING),
        ("net.permuted-1", "float"): label_maps(CLEAN),
        ("net.permuted-2", "float"): label_maps(NOTHING),
        ("net.permuted-3", "float"): label_maps(NOTHING),
    }
    _, table = scored(tmp_path / "p", root, predictions, resamples=12, seed=3)
    control = table["net.permuted", "float"]
    first, second = 100 * 25 / 36, 100 * 5 / 33
    assert control["score"] == pytest.approx((first + 2 * second) / 3)
    assert control["drop"] == pytest.approx(2 * (first - second) / 3)
    # the mean is taken in every resample: its error is not the mean of the errors
    weights = metrics.bootstrap_weights(3, 12, int(generator("bootstrap", 3).integers(2**31)))
    clean, nothing = resampled(CLEAN, weights), resampled(NOTHING, weights)
    assert control["score_se"] == pytest.approx(((clean + 2 * nothing) / 3).std(ddof=1))
    assert control["drop_se"] == pytest.approx((2 * (clean - nothing) / 3).std(ddof=1))
    assert control["per_class"]["sofa"] is None
    assert table["net.permuted-2", "float"]["score"] == pytest.approx(second)
    # what the perturbation does beyond its control: a third of the way from nothing to clean, in every resample
    beyond = table["net", "float"]["beyond"]
    assert set(beyond) == {"permuted"} and not control["beyond"]
    assert beyond["permuted"]["difference"] == pytest.approx((first - second) / 3)
    assert beyond["permuted"]["low"] == pytest.approx(np.quantile((clean - nothing) / 3, 0.025))
    assert beyond["permuted"]["high"] == pytest.approx(np.quantile((clean - nothing) / 3, 0.975))


def test_pixels_are_scored_apart(tmp_path, root):
    predictions = {
        ("none", "float"): label_maps(CLEAN),
        ("none", "8-bit"): label_maps(NOTHING),
        ("net", "float"): label_maps(NOTHING),
        ("net", "8-bit"): label_maps(NOTHING),
    }
    _, table = scored(tmp_path / "p", root, predictions)
    assert table["net", "float"]["drop"] > 50 and table["net", "8-bit"]["drop"] == 0


@pytest.mark.parametrize("split", [(1, 2), (2, 1), (1, 1, 1)])
def test_shards_do_not_change_scores(tmp_path, root, split):
    predictions = {("none", "float"): label_maps(CLEAN), ("net", "float"): label_maps(NOTHING)}
    _, whole = scored(tmp_path / "whole", root, predictions)
    _, parts = scored(tmp_path / "parts", root, predictions, split=split)
    for key, cell in whole.items():
        numbers = ("score", "score_se", "companion", "companion_se", "drop", "drop_se", "per_class")
        assert {name: cell[name] for name in numbers} == {name: parts[key][name] for name in numbers}
    # the size of a perturbation: mean and largest over all images, whatever shard they lie in
    first = [sum(split[:number]) for number in range(len(split)) for _ in range(split[number])]
    assert parts["net", "float"]["perceptibility"] == pytest.approx(np.mean([0.001 * (f + 1) for f in first]))
    assert parts["net", "float"]["linf"] == 1.0 + first[-1]


def test_the_same_resamples_serve_all_victims(tmp_path, root):
    predictions = {("none", "float"): label_maps(CLEAN)}
    _, first = scored(tmp_path / "1", root, predictions)
    _, second = scored(tmp_path / "2", root, predictions)
    assert first == second
    _, other = scored(tmp_path / "3", root, predictions, seed=1)
    assert other["none", "float"]["score_se"] != first["none", "float"]["score_se"]


def test_differences_between_victims_are_paired(tmp_path, root):
    """Victims that see the same have the same interval, since an image that is drawn is drawn for all of them."""
    images, named = [(root, image_id) for image_id in IDS], {}
    for victim, maps in {"first": TRUTH, "second": TRUTH, "third": TRUTH | {"c": NOTHING["c"]}}.items():
        named[victim] = {"label": victim, "task": "segmentation"}
        for name, seen in {"none": TRUTH, "net": CLEAN if victim != "third" else maps}.items():
            arrays = label_maps({key: np.where(np.equal(value, 255), 0, value) for key, value in seen.items()})
            path = tmp_path / victim / f"{name}.float" / "0000.h5"
            shard(path, "predictions", arrays, {"name": name}, perceptibility=0.0, largest=0.0)
    made = [
        cells.Cell(victim, name, "float", None, tmp_path / victim / f"{name}.float" / "0000.h5", {"name": name})
        for victim in named
        for name in ("none", "net")
    ]
    cells.write_manifest(tmp_path / "m.json", made)
    first, second, third = (
        {cell["perturbation"]: cell for cell in found["cells"]}
        for found in score.score([tmp_path / "m.json"], images, named, resamples=400, seed=5)
    )
    assert first["net"]["drop_se"] > 0
    for number in ("score_se", "drop_se", "drop_low", "drop_high", "companion_se"):
        assert first["net"][number] == second["net"][number]
    assert third["net"]["score_se"] > 0


def test_a_missing_image_is_named(tmp_path, root):
    maps, known = label_maps({x: CLEAN[x] for x in "ab"}), {"perceptibility": 0.0, "largest": 0.0}
    path = shard(tmp_path / "p" / "0000.h5", "predictions", maps, {"x": 1}, **known)
    cell = cells.Cell("victim", "none", "float", None, path, {"x": 1})
    cells.write_manifest(tmp_path / "m.json", [cell])
    networks = {"victim": {"label": "", "task": "segmentation"}}
    images = [(root, image_id) for image_id in IDS]
    with pytest.raises(ValueError, match="p: no predictions for 1 images, the first is c"):
        score.score([tmp_path / "m.json"], images, networks, resamples=2, seed=0)
    # one that is given up is on record and not scored
    (given_up,) = score.score([tmp_path / "m.json"], images[:2], networks, resamples=2, seed=0, missing=["c"])
    assert (given_up["images"], given_up["missing"]) == (2, ["c"]) and len(given_up["cells"]) == 1


def test_clean_scores_take_every_image_alone(tmp_path, root):
    """Aeroplane and bicycle of image after image, by hand; of the detector a hit, a miss, and nothing at all."""
    boxes = {"a": hit(0.9), "b": miss(0.5), "c": np.zeros((0, 6), np.float32)}
    networks = {"maps": {"task": "segmentation"}, "boxes": {"task": "detection"}}
    made = []
    for victim, arrays in (("maps", label_maps(CLEAN)), ("boxes", boxes)):
        known = {"perceptibility": 0.0, "largest": 0.0}
        path = shard(tmp_path / f"{victim}.h5", "predictions", arrays, {"of": victim}, **known)
        made.append(cells.Cell(victim, "none", "float", None, path, {"of": victim}))
    cells.write_manifest(tmp_path / "m.json", made)
    images = [(root, image_id) for image_id in IDS]
    maps, found = score.clean_scores([tmp_path / "m.json"], images, networks)
    for image_id, value in zip(IDS, maps, strict=True):
        truth, seen = np.array(TRUTH[image_id]), np.array(CLEAN[image_id])
        known = truth != 255
        classes = {*truth[known].tolist(), *seen[known].tolist()} - {0}
        parts = [((truth == c) & (seen == c))[known].sum() / ((truth == c) | (seen == c))[known].sum() for c in classes]
        assert value == pytest.approx(100 * np.mean(parts))
    assert found.tolist() == [100, 0, 0]


def test_clean_scores_of_detectors_count_what_is_drawn(tmp_path, root):
    """A hit below the threshold is not drawn; of a drawn hit and a drawn false positive F1 is 2 / (2 + 1)."""
    boxes = {"a": np.concatenate([hit(0.9), miss(0.6), miss(0.4)]), "b": hit(0.4), "c": np.zeros((0, 6), np.float32)}
    path = shard(tmp_path / "p.h5", "predictions", boxes, {"of": "boxes"}, perceptibility=0.0, largest=0.0)
    cells.write_manifest(tmp_path / "m.json", [cells.Cell("boxes", "none", "float", None, path, {"of": "boxes"})])
    images = [(root, image_id) for image_id in IDS]
    (found,) = score.clean_scores([tmp_path / "m.json"], images, {"boxes": {"task": "detection"}})
    assert found == pytest.approx([200 / 3, 0, 0])


def test_the_best_images_are_those_of_the_highest_mean_score():
    images = [(Path("r"), name) for name in "pqrst"]
    values = np.array([[50.0, 90, 70, np.nan, 90], [70, 40, 50, 100, 40]])
    # means 60, 65, 60, none, 65; of equals the earlier first
    assert [name for _, name in collect.best(images, values, 3)] == ["q", "t", "p"]
    assert len(collect.best(images, values, 9)) == 4
    with pytest.raises(ValueError, match="no image has something to find for every victim; name images by their ids"):
        collect.best(images, values * np.nan, 1)


def test_it_is_said_how_images_were_chosen():
    assert collect.choice({"images": ["a", "b"]}, 50) == "Images named in the configuration."
    assert collect.choice({"images": 2}, 50) == collect.choice({"images": 2, "choose": "spaced"}, 50)
    assert "evenly spaced among 50" in collect.choice({"images": 2}, 50)
    words = collect.choice({"images": 2, "choose": "clean"}, 50)
    assert "among 50 images by the predictions on the clean image only" in words


# What tables and figures are made of


def test_records_of_sources(tmp_path):
    (tmp_path / "ids.txt").write_text("a\nb\nc\n")
    image_set = {"name": "test", "parts": [{"root": ".", "list": f"{tmp_path}/ids.txt"}], "size": 3, "sha256": None}
    header = {"network": {"task": "detection"}, "settings": {"nms": 0.9}, "image_set": image_set}
    paths = []
    for source in ("net", "net@authors"):
        for number, ids in enumerate((["a", "b"], ["c"])):
            paths.append(tmp_path / f"{source}.{number}.h5")
            arrays = {image_id: noise(image_id) for image_id in ids}
            shard(paths[-1], "perturbations", arrays, header | {"source": source}, status="converged", active=[2, 0])
    found = collect.records(paths, {"net": {"label": "Net", "task": "detection"}})
    assert [(entry["source"], entry["label"]) for entry in found] == [("net", "Net"), ("net@authors", "Net (authors)")]
    assert [record["image"] for record in found[0]["records"]] == IDS
    assert found[1]["task"] == "detection" and found[1]["settings"] == {"nms": 0.9}
    assert found[0]["records"][2]["active"].tolist() == [2, 0]
    assert [entry["missing"] for entry in found] == [[], []]
    # a shard of the first source is given up
    without = collect.records(paths[1:], {"net": {"label": "Net", "task": "detection"}})
    assert [entry["missing"] for entry in without] == [["a", "b"], []]


def test_example_blocks(tmp_path, root):
    perturbations, manifests = [], []
    for number, ids in enumerate((["a"], ["b", "c"])):
        arrays = {image_id: noise(image_id) for image_id in ids}
        perturbations.append(shard(tmp_path / f"r{number}.h5", "perturbations", arrays, status="converged"))
        made = []
        for name, maps in (("none", CLEAN), ("net", NOTHING)):
            path = shard(tmp_path / f"{name}{number}.h5", "predictions", label_maps({x: maps[x] for x in ids}), {})
            made.append(cells.Cell("net", name, "float", None, path, {}))
        manifests.append(tmp_path / f"{number}.json")
        cells.write_manifest(manifests[-1], made)
    networks = {"net": {"label": "Net", "task": "segmentation"}}
    panels = [{"perturbation": "net", "victims": ["net"]}]
    images = [(root, "c"), (root, "a")]
    blocks = collect.example_blocks(images, panels, {"net": perturbations}, manifests, networks, {"net": "r1"})
    assert [block["label"] for block in blocks] == ["Net (r1) on c", "Net (r1) on a"]
    assert np.array_equal(blocks[0]["perturbation"], noise("c")) and blocks[0]["status"] == "converged"
    (victim,) = blocks[1]["victims"]
    assert victim["truth"].tolist() == TRUTH["a"]
    assert victim["before"].tolist() == CLEAN["a"] and victim["after"].tolist() == NOTHING["a"]
    # a victim that is not the source is named
    networks["src"] = {"label": "Source", "task": "detection"}
    content = [
        json.loads(manifest.read_text().replace('"perturbation": "net"', '"perturbation": "src"'))
        for manifest in manifests
    ]
    for manifest, entries in zip(manifests, content, strict=True):
        files.write_json(manifest, entries)
    panels = [{"perturbation": "src", "victims": ["net"]}]
    (block,) = collect.example_blocks(images[:1], panels, {"src": perturbations}, manifests, networks, {"src": "r2"})
    assert block["label"] == "Source (r2) → Net on c"
    with pytest.raises(ValueError, match="image x is in none of .*; is it in the image set"):
        collect.example_blocks([(root, "x")], panels, {"src": perturbations}, manifests, networks, {})
