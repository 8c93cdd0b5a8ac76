"""Shards: nothing lost, nothing half done, nothing of another job taken for one's own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from dag import store

IDS = ["2007_000032", "000005", "b"]
HEADER = {"network": {"name": "fr-zf-07", "arguments": {"labels": [0, 1]}}, "seed": 2017, "step": 0.5}
ATTRIBUTES = {
    "status": "iteration limit",
    "iterations": 150,
    "perceptibility": 1.5e-3,
    "kept": True,
    "active": [14, 3, 0],
}


def array(image_id: str) -> np.ndarray:
    """Noise that depends on the id alone, of its own size."""
    rng = np.random.default_rng(list(image_id.encode()))
    return rng.normal(0, 2, (3, 5 + len(image_id), 8)).astype(np.float32)


def write(path: Path, ids=IDS, header=HEADER, kind="perturbations", stop_after: int | None = None) -> list[str]:
    """Write a shard; break off after some images.  Returns the ids that had to be computed."""
    computed = []
    with store.writing(path, kind, ids, header) as shard:
        for image_id in ids:
            if image_id in shard.done:
                continue
            if len(computed) == stop_after:
                raise KeyboardInterrupt
            shard.put(image_id, array(image_id), ATTRIBUTES)
            computed.append(image_id)
    return computed


def interrupted(path: Path, stop_after: int, **arguments) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(path, stop_after=stop_after, **arguments)


def same_bits(first: np.ndarray, second: np.ndarray) -> bool:
    return first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()


# Round trip


def test_what_is_read_is_what_was_written(tmp_path):
    path = tmp_path / "deep" / "folder" / "0000.h5"
    write(path)
    assert list(path.parent.iterdir()) == [path]
    for image_id in IDS:
        read, attributes = store.read(path, image_id, "perturbations")
        assert same_bits(read, array(image_id))
        assert attributes.pop("active").tolist() == ATTRIBUTES["active"]
        assert attributes == {name: value for name, value in ATTRIBUTES.items() if name != "active"}
        assert {name: type(value) for name, value in attributes.items()} == {
            "status": str, "iterations": int, "perceptibility": float, "kept": bool
        }  # fmt: skip
    assert list(store.read_attributes(path)) == IDS


@pytest.mark.parametrize(
    "values",
    [
        np.array([0, -0.0, 1e-45, -3.4e38, np.nextafter(np.float32(0.5), np.float32(1))], np.float32),
        np.arange(256, dtype=np.uint8).reshape(16, 16),
        np.zeros((0, 6), np.float32),
        np.float32([[1, 2, 3, 4, 20, 0.05]]),
        np.zeros((3, 1, 1), np.float32),
    ],
)
def test_every_bit_survives(tmp_path, values):
    with store.writing(tmp_path / "a.h5", "predictions", ["x"], {}) as shard:
        shard.put("x", values, {})
    assert same_bits(store.read(tmp_path / "a.h5", "x")[0], values)


def test_an_empty_curve_survives(tmp_path):
    # images without targets have no forward pass
    with store.writing(tmp_path / "a.h5", "perturbations", ["x"], {}) as shard:
        shard.put("x", array("x"), {"active": [], "status": "no targets"})
    attributes = store.read_attributes(tmp_path / "a.h5")["x"]
    assert len(attributes["active"]) == 0 and attributes["status"] == "no targets"


def test_the_header_comes_back_with_its_key_ids_and_versions(tmp_path):
    path = tmp_path / "a.h5"
    write(path)
    header = store.read_header(path, "perturbations")
    assert header.pop("ids") == IDS and header.pop("key") == store.key(HEADER)
    assert {"python", "torch", "numpy", "h5py"} <= set(header.pop("versions"))
    assert header == HEADER


def test_the_key_is_the_digest_of_the_content_and_not_of_its_order():
    import hashlib

    assert store.key({"b": 1, "a": [1, None]}) == hashlib.sha256(b'{"a":[1,null],"b":1}').hexdigest()
    assert store.key({"b": 1, "a": 2}) == store.key({"a": 2, "b": 1})
    assert len({store.key({"a": value}) for value in (1, 2, "1", None, [1], 1.5)}) == 6


def test_a_shard_of_two_thousand_images_has_room_for_its_ids(tmp_path):
    # an attribute of HDF5's oldest format holds 64 KiB; 2000 is the greatest shard_size
    ids = [f"2007_{number:06d}" for number in range(2000)]
    with store.writing(tmp_path / "a.h5", "predictions", ids, {}) as shard:
        for image_id in ids:
            shard.done.add(image_id)  # only the header is of interest here
            shard._file.create_group(image_id)
    assert store.read_header(tmp_path / "a.h5")["ids"] == ids


def test_file_digest():
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert store.file_digest(Path(os.devnull)) == empty


# Interruptions


@pytest.mark.parametrize("stop_after", [0, 1, 2])
def test_an_interrupted_shard_is_continued(tmp_path, stop_after):
    path, whole = tmp_path / "a.h5", tmp_path / "whole.h5"
    interrupted(path, stop_after)
    assert not path.exists()
    assert write(path) == IDS[stop_after:]
    assert not path.with_name("a.h5.partial").exists()
    write(whole)
    for image_id in IDS:
        assert same_bits(store.read(path, image_id)[0], store.read(whole, image_id)[0])
    assert store.read_header(path) == store.read_header(whole)


def test_a_partial_file_of_another_job_is_thrown_away(tmp_path):
    path = tmp_path / "a.h5"
    interrupted(path, 2, header=HEADER | {"step": 0.25})
    assert write(path) == IDS
    assert store.read_header(path)["step"] == 0.5


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n", b"something else", "truncated"])
def test_a_partial_file_that_cannot_be_read_is_thrown_away(tmp_path, content):
    path = tmp_path / "a.h5"
    partial = tmp_path / "a.h5.partial"
    if content == "truncated":
        interrupted(path, 2)
        content = partial.read_bytes()[:-100]
    partial.write_bytes(content)
    assert write(path) == IDS


def test_an_image_cut_off_in_the_middle_is_computed_again(tmp_path):
    path = tmp_path / "a.h5"
    interrupted(path, 2)
    with h5py.File(tmp_path / "a.h5.partial", "a") as file:
        del file[IDS[1]].attrs["stored"]
        file[IDS[1]][...] = 0
    assert write(path) == IDS[1:]
    assert same_bits(store.read(path, IDS[1])[0], array(IDS[1]))


def test_an_older_shard_stays_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "a.h5"
    write(path)
    interrupted(path, 1, header={"new": 1})
    assert store.read_header(path)["key"] == store.key(HEADER)
    write(path, header={"new": 1})
    assert store.read_header(path)["key"] == store.key({"new": 1})


def test_a_shard_without_all_its_images_does_not_appear(tmp_path):
    path = tmp_path / "a.h5"
    with (
        pytest.raises(ValueError, match="a.h5.partial: 2 images are missing, the first is 000005"),
        store.writing(path, "perturbations", IDS, HEADER) as shard,
    ):
        shard.put(IDS[0], array(IDS[0]), {})
    assert not path.exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_not_stored(tmp_path, value):
    with (
        pytest.raises(ValueError, match="a.h5.partial: image x has values that are not finite"),
        store.writing(tmp_path / "a.h5", "perturbations", ["x"], {}) as shard,
    ):
        shard.put("x", np.array([0, value], np.float32), {})


CHILD = """
import os, sys
sys.path[:0] = {paths!r}
from pathlib import Path
import test_store
from dag import store
with store.writing(Path({path!r}), "perturbations", {ids!r}, test_store.HEADER) as shard:
    for image_id in {ids!r}:
        if image_id not in shard.done:
            shard.put(image_id, test_store.array(image_id), test_store.ATTRIBUTES)
            print(image_id, flush=True)
"""


def killed_until_complete(tmp_path):
    """kill -9 at random moments, until the shard is complete: path, ids, ids stored by each process, kills."""
    path, ids = tmp_path / "a.h5", [f"{number:06d}" for number in range(400)]
    here = Path(__file__).parent
    program = CHILD.format(paths=[str(here.parent), str(here)], path=str(path), ids=ids)
    rng, stored, kills = np.random.default_rng(0), [], 0
    while not path.exists():
        child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        lines = []
        if kills < 4:
            lines += [child.stdout.readline().strip()]
            time.sleep(rng.uniform(0, 0.05))
            child.send_signal(signal.SIGKILL)
            kills += 1
        lines += child.stdout.read().split()
        child.stdout.close()
        code = child.wait()
        assert code in (0, -signal.SIGKILL)
        stored.append(lines)
    assert kills >= 2
    return path, ids, stored, kills


def test_killed_jobs_end_in_a_complete_and_right_shard(tmp_path):
    path, ids, _, _ = killed_until_complete(tmp_path)
    with store.reading(path, "perturbations") as file:
        for image_id in ids:
            assert same_bits(store.get(file, image_id)[0], array(image_id))


@pytest.mark.xfail(strict=False, reason="a kill inside a write of HDF5's index costs the shard's work so far")
def test_a_killed_job_loses_no_image_that_it_had_stored(tmp_path):
    _, ids, stored, kills = killed_until_complete(tmp_path)
    # nothing is computed twice, but for the image whose line the kill cut off
    images = [image_id for lines in stored for image_id in lines]
    assert len(set(images)) == len(images)
    assert len(ids) - kills <= len(images) <= len(ids)


def test_two_jobs_do_not_write_one_shard(tmp_path):
    path = tmp_path / "a.h5"
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from dag import store\n"
        f"with store.writing({str(path)!r}, 'perturbations', ['x'], {{}}): print('open', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert child.stdout.readline() == b"open\n"
        for header in ({}, {"another": "key"}):
            with (
                pytest.raises(ValueError, match="a.h5.partial: another process is writing this shard; wait for it"),
                store.writing(path, "perturbations", ["x"], header),
            ):
                pass
        assert path.with_name("a.h5.partial").exists()
    finally:
        child.communicate(timeout=20)
    # the first one ended without its image; its lock went with it
    write(path, ids=["x"], header={})


# Files that are not what they should be


def changed(path: Path, change) -> None:
    with h5py.File(path, "a") as file:
        change(file)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def flip_one_bit_of_the_data(path: Path) -> None:
    with h5py.File(path) as file:
        offset = file[IDS[0]].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[offset + 20] ^= 8
    path.write_bytes(content)


def make_unfinished(path: Path) -> None:
    changed(path, lambda file: file.attrs.update(complete=False))


def make_foreign(path: Path) -> None:
    path.unlink()
    with h5py.File(path, "w") as file:
        file[IDS[0]] = np.zeros(3)


def make_text(path: Path) -> None:
    path.write_text("not HDF5 at all")


def make_newer(path: Path) -> None:
    changed(path, lambda file: file.attrs.update(dag=2))


def damage_the_header(path: Path) -> None:
    changed(path, lambda file: file.attrs.update(header='{"network": '))


def lose_the_ids(path: Path) -> None:
    changed(path, lambda file: file.attrs.__delitem__("ids"))


SENTENCES = {
    Path.unlink: "a.h5: no such shard; run the workflow to make it$",
    truncate: "a.h5: truncated or not an HDF5 file; delete it and run the workflow again$",
    make_text: "a.h5: truncated or not an HDF5 file; delete it and run the workflow again$",
    make_foreign: "a.h5: an HDF5 file, but not a shard of this project; delete it and run the workflow again$",
    make_newer: "a.h5: shard format 2, this version reads 1; delete it and run the workflow again$",
    make_unfinished: "a.h5: unfinished shard; delete it and run the workflow again$",
    damage_the_header: "a.h5: the header is damaged; delete the file and run the workflow again$",
    lose_the_ids: "a.h5: the header is damaged; delete the file and run the workflow again$",
}


@pytest.mark.parametrize("damage", SENTENCES, ids=lambda damage: damage.__name__)
def test_a_file_that_is_not_a_complete_shard_is_refused(tmp_path, damage):
    path = tmp_path / "a.h5"
    write(path)
    damage(path)
    with pytest.raises(ValueError, match=SENTENCES[damage]):
        store.read_header(path, "perturbations")
    if damage not in (damage_the_header, lose_the_ids):
        with pytest.raises(ValueError, match=SENTENCES[damage]):
            store.read(path, IDS[0])
        with pytest.raises(ValueError, match=SENTENCES[damage]):
            store.read_attributes(path)


def test_a_shard_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "a.h5"
    write(path, kind="predictions")
    with pytest.raises(ValueError, match="a.h5: holds predictions, not perturbations; delete it"):
        store.read(path, IDS[0], "perturbations")
    store.read(path, IDS[0])


def test_an_image_of_another_set_is_missed(tmp_path):
    path = tmp_path / "a.h5"
    write(path)
    with pytest.raises(ValueError, match="a.h5: no image 009999; the shard belongs to another image set"):
        store.read(path, "009999")


def test_a_flipped_bit_is_found(tmp_path):
    path = tmp_path / "a.h5"
    write(path)
    flip_one_bit_of_the_data(path)
    assert store.read_header(path)
    with pytest.raises(ValueError, match=f"a.h5: the data of image {IDS[0]} are damaged; delete the file and run"):
        store.read(path, IDS[0])
    assert same_bits(store.read(path, IDS[1])[0], array(IDS[1]))


@pytest.mark.parametrize("position", range(0, 2800, 97))
def test_damaged_bytes_give_a_sentence_or_what_was_written(tmp_path, position):
    """Wherever a byte is wrong, no bare h5py error reaches the user."""
    path = tmp_path / "a.h5"
    write(path)
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)
    message = ""
    try:
        store.read_header(path, "perturbations")
        store.read_attributes(path)
        read = [store.read(path, image_id)[0] for image_id in IDS]
    except ValueError as error:
        message = str(error)
    if message:
        assert message.startswith(f"{path}: ")
    else:
        assert all(same_bits(one, array(image_id)) for one, image_id in zip(read, IDS, strict=True))


# Text


def test_text_and_json_replace_the_old_file_at_once(tmp_path):
    path = tmp_path / "new" / "a.json"
    store.write_json(path, {"a": [1.5, None], "b": "é"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": [1.5, None], "b": "é"}
    before = path.read_text()
    # JSON has no NaN; the old file stays as it was
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.write_json(path, float("nan"))
    assert path.read_text() == before
    store.write_text(path, "↓ ±\n")
    assert path.read_text(encoding="utf-8") == "↓ ±\n"
    assert list(path.parent.iterdir()) == [path]


def test_a_crash_while_writing_leaves_the_old_text(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    store.write_text(path, "old")

    def crash(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(store.os, "replace", crash)
    with pytest.raises(OSError, match="no space left"):
        store.write_text(path, "new")
    assert path.read_text() == "old"
