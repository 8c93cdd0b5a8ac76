"""Shards: nothing lost, nothing half done, nothing of another job taken for one's own."""

import errno
import hashlib
import json
import os
import re
import resource
import subprocess
import zlib
from contextlib import contextmanager, nullcontext
from pathlib import Path

import h5py
import numpy as np
import pytest

from dag.workflow import encoding, files, store

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


def write(
    path: Path, ids=IDS, header=HEADER, kind="perturbations", stop_after: int | None = None, keep: bool = False
) -> list[str]:
    """Write a shard; break off after some images.  Returns the ids that had to be computed."""
    computed = []
    with store.writing(path, kind, ids, header, keep=keep) as shard:
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
    assert store.key({"b": 1, "a": [1, None]}) == hashlib.sha256(b'{"a":[1,null],"b":1}').hexdigest()
    assert store.key({"b": 1, "a": 2}) == store.key({"a": 2, "b": 1})
    assert len({store.key({"a": value}) for value in (1, 2, "1", None, [1], 1.5)}) == 6


def test_a_shard_of_two_thousand_images_has_room_for_its_ids(tmp_path):
    # an attribute of HDF5's oldest format holds 64 KiB; 2000 is the greatest shard_size
    ids = [f"2007_{number:06d}" for number in range(2000)]
    with store.writing(tmp_path / "a.h5", "predictions", ids, {}, every=60) as shard:
        for image_id in ids:
            shard.put(image_id, np.zeros((0, 6), np.float32), {})
    assert store.read_header(tmp_path / "a.h5")["ids"] == ids


def test_file_digest():
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert files.file_digest(Path(os.devnull)) == empty


# Interruptions


@pytest.mark.parametrize("stop_after", [0, 1, 2])
def test_an_interrupted_shard_is_continued(tmp_path, stop_after):
    path, whole = tmp_path / "a.h5", tmp_path / "whole.h5"
    interrupted(path, stop_after)
    assert not path.exists()
    assert write(path) == IDS[stop_after:]
    assert list(tmp_path.iterdir()) == [path]
    write(whole)
    assert path.read_bytes() == whole.read_bytes()


def test_neither_order_nor_parts_change_a_byte(tmp_path):
    """Parts of several images, in another order, with numpy's numbers: as if all had been put at once."""
    values = {"a": np.float32(0.1), "b": np.int16(3), "c": np.array([1, 2], np.uint8), "d": np.bool_(True), "e": "é"}
    for name, order, every in (("one", IDS, 60), ("two", [IDS[2], IDS[0], IDS[1]], 0), ("three", IDS[::-1], 60)):
        path = tmp_path / f"{name}.h5"
        for count in (1, 3) if name == "three" else (3,):
            with (
                pytest.raises(KeyboardInterrupt) if count < 3 else nullcontext(),
                store.writing(path, "perturbations", IDS, HEADER, every=every) as shard,
            ):
                for image_id in order[:count]:
                    if image_id not in shard.done:
                        shard.put(image_id, array(image_id), values)
                if count < 3:
                    raise KeyboardInterrupt
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "three.h5").read_bytes()


def parts(path: Path) -> list[Path]:
    """What an interrupted job left."""
    return sorted(path.with_name(path.name + ".parts").glob("*"))


@pytest.mark.parametrize("other", [{"header": HEADER | {"step": 0.25}}, {"kind": "predictions"}], ids=str)
def test_parts_of_another_shard_are_thrown_away(tmp_path, other):
    path = tmp_path / "a.h5"
    interrupted(path, 2, **other)
    assert len(parts(path)) == 2
    assert write(path) == IDS
    assert store.read_header(path, "perturbations")["step"] == 0.5
    assert list(tmp_path.iterdir()) == [path]


def test_a_part_of_another_version_is_thrown_away(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    with monkeypatch.context() as older:
        older.setattr(encoding, "PART_FORMAT", 1)
        interrupted(path, 2)
    assert write(path) == IDS


@pytest.mark.parametrize("damage", ["empty", "short", "long", "foreign"])
def test_a_damaged_part_costs_its_own_image(tmp_path, damage, capsys):
    path = tmp_path / "a.h5"
    interrupted(path, 2)
    part = next(part for part in parts(path) if IDS[0].encode() in part.read_bytes())
    content = part.read_bytes()
    part.write_bytes({"empty": b"", "short": content[:-1], "long": content + b"0", "foreign": b"0" * 999}[damage])
    assert write(path) == [IDS[0], IDS[2]]
    assert f"{part}: damaged; its images are computed again" in capsys.readouterr().err
    write(tmp_path / "whole.h5")
    assert path.read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_a_wrong_bit_in_a_part_is_found_wherever_it_is(tmp_path):
    path = tmp_path / "a.h5"
    interrupted(path, 1)
    (part,) = parts(path)
    content = part.read_bytes()
    for position in range(0, 8 * len(content), 131):
        wrong = bytearray(content)
        wrong[position // 8] ^= 1 << position % 8
        part.write_bytes(wrong)
        with pytest.raises(ValueError, match="part: damaged"):
            encoding.unpack(part)


def test_what_was_cut_off_in_the_middle_is_computed_again(tmp_path):
    path = tmp_path / "a.h5"
    interrupted(path, 2)
    part = parts(path)[0]
    part.rename(part.with_name(part.name + ".partial"))
    (part.parent / "0.whole").write_bytes(b"\x89HDF\r\n\x1a\n")
    assert len(write(path)) == 2
    assert list(tmp_path.iterdir()) == [path]
    for image_id in IDS:
        assert same_bits(store.read(path, image_id)[0], array(image_id))


def test_what_was_not_yet_safe_is_saved_when_a_job_fails(tmp_path):
    path = tmp_path / "a.h5"

    def fail(shard):
        for image_id in IDS[:2]:
            shard.put(image_id, array(image_id), ATTRIBUTES)
        assert [file.name for file in parts(path)] == ["lock"]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), store.writing(path, "perturbations", IDS, HEADER, every=60) as shard:
        fail(shard)
    assert len(parts(path)) == 1
    assert write(path) == IDS[2:]


def test_every_so_many_seconds_becomes_one_part(tmp_path, monkeypatch):
    clock = iter([0, 0.5, 1.5, 1.5, 1.6, 2.7, 2.7])  # start; first image; second, saved; third; fourth, saved
    monkeypatch.setattr(store.time, "monotonic", lambda: next(clock))
    path, ids = tmp_path / "a.h5", ["a", "b", "c", "d"]
    monkeypatch.setattr(store.lock, "held", lambda *_: nullcontext(lambda: None))
    (tmp_path / "a.h5.parts").mkdir()
    with store.writing(path, "predictions", ids, {}, every=1) as shard:
        for image_id, count in zip(ids, (0, 1, 1, 2), strict=True):
            shard.put(image_id, np.zeros(3, np.uint8), {})
            assert len(parts(path)) == count
    assert list(store.read_attributes(path)) == ids


def test_a_shard_in_its_place_is_left_alone(tmp_path):
    path = tmp_path / "a.h5"
    write(path)
    before = path.stat().st_mtime_ns
    assert write(path) == []
    assert path.stat().st_mtime_ns == before and list(tmp_path.iterdir()) == [path]
    # nor are parts that a job left when it was killed after the last rename
    interrupted(tmp_path / "b.h5", 2)
    (tmp_path / "b.h5.parts").rename(tmp_path / "a.h5.parts")
    assert write(path) == []
    assert list(tmp_path.iterdir()) == [path]


def test_a_shard_that_is_deleted_before_the_run_has_ended_is_put_back(tmp_path):
    path, second = tmp_path / "a.h5", tmp_path / "a.h5.parts" / "second.h5"
    assert write(path, keep=True) == IDS
    content, number = path.read_bytes(), path.stat().st_ino
    # one file on the disk, not two
    assert second.stat().st_ino == number and list(second.parent.iterdir()) == [second]
    for _ in range(2):
        path.unlink()
        store.forget(tmp_path)
        os.utime(second, (1, 1))
        assert write(path, keep=True) == []
        assert path.read_bytes() == content and path.stat().st_ino == number
        assert path.stat().st_mtime > 1
    # once the run has ended there is nothing to be seen of it, and who deletes the shard means it
    store.forget(tmp_path)
    assert list(tmp_path.iterdir()) == [path]
    path.unlink()
    assert write(path, keep=True) == IDS


def test_a_file_system_without_hard_links_is_said_and_no_reason_to_stop(tmp_path, monkeypatch, capfd):
    path = tmp_path / "a.h5"

    def fail_with(number):
        def link(source, target):
            raise OSError(number, os.strerror(number), str(source))

        monkeypatch.setattr(os, "link", link)

    fail_with(errno.EPERM)
    assert write(path, keep=True) == IDS
    assert "this file system has no hard links" in capfd.readouterr().err
    write(tmp_path / "b.h5")
    assert path.read_bytes() == (tmp_path / "b.h5").read_bytes()
    # any other failure is one
    fail_with(errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        write(tmp_path / "c.h5", keep=True)


@pytest.mark.parametrize("fault", ["another header", "a wrong bit"])
def test_a_second_name_of_what_is_not_wanted_is_not_put_back(tmp_path, fault):
    path = tmp_path / "a.h5"
    header = HEADER | {"seed": 1} if fault == "another header" else HEADER
    write(path, header=header, keep=True)
    if fault == "a wrong bit":
        with h5py.File(path) as file:
            place = file[IDS[1]].id.get_chunk_info(0)
        content = bytearray(path.read_bytes())
        content[place.byte_offset + place.size // 2] ^= 1
        with open(path, "r+b") as file:  # in place: both names have it
            file.write(content)
    path.unlink()
    assert write(path, keep=True) == IDS
    write(tmp_path / "b.h5")
    assert path.read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_an_image_is_put_once_and_belongs_to_the_shard(tmp_path):
    with store.writing(tmp_path / "a.h5", "perturbations", ["x"], {}) as shard:
        shard.put("x", array("x"), {})
        for image_id in ("x", "y"):
            with pytest.raises(ValueError, match=f"a.h5: image {image_id} is there already or is not of this shard"):
                shard.put(image_id, array("x"), {})


def test_a_put_array_may_be_used_again(tmp_path):
    values = np.zeros(3, np.float32)
    with store.writing(tmp_path / "a.h5", "perturbations", ["x", "y"], {}, every=60) as shard:
        for number, image_id in enumerate("xy"):
            values[:] = number
            shard.put(image_id, values, {})
    assert [store.read(tmp_path / "a.h5", image_id)[0].tolist() for image_id in "xy"] == [[0] * 3, [1] * 3]


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
        pytest.raises(ValueError, match="a.h5: 2 images are missing, the first is 000005"),
        store.writing(path, "perturbations", IDS, HEADER) as shard,
    ):
        shard.put(IDS[0], array(IDS[0]), {})
    assert not path.exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_not_stored(tmp_path, value):
    with (
        pytest.raises(ValueError, match="a.h5: image x has values that are not finite"),
        store.writing(tmp_path / "a.h5", "perturbations", ["x"], {}) as shard,
    ):
        shard.put("x", np.array([0, value], np.float32), {})


# Disks that are full or may not be written to


@contextmanager
def no_file_larger_than(size: int):
    """Every write beyond fails with EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_may_not_grow_fails_with_a_sentence_and_loses_nothing(tmp_path):
    """Wherever the limit strikes, in a part, in the HDF5 file or in its seal; HDF5 itself would crash."""
    ids = [f"{number:03d}" for number in range(10)]
    whole = tmp_path / "whole.h5"
    write(whole, ids=ids)
    end, part = whole.stat().st_size, 2000
    for size in [0, 300, 700, *range(part, end, end // 5), end - 40, end - 1]:
        path = tmp_path / f"{size}.h5"
        with pytest.raises(OSError, match=f"{path}: cannot be written, the disk is full ") as caught:  # noqa: SIM117
            with no_file_larger_than(size):
                write(path, ids=ids)
        assert caught.value.errno is None  # a text of ours, see dag.workflow.startup
        assert not path.exists()
        # where the parts fit all work is kept; nothing unfinished takes room
        assert [file.suffix for file in parts(path)] == [".part"] * (10 if size >= part else 0)
        assert write(path, ids=ids) == ([] if size >= part else ids)
        assert path.read_bytes() == whole.read_bytes()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 300 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_fails_with_a_sentence_and_loses_nothing(small_disk, tmp_path):
    ids = [f"{number:03d}" for number in range(30)]
    write(tmp_path / "whole.h5", ids=ids)
    path, ballast = small_disk / "a.h5", small_disk / "ballast"
    sentence = f"{path}: cannot be written, the disk is full (No space left on device); make room and run the workflow"
    computed, sentences = [], []
    for left in range(0, 300, 12):  # KB
        ballast.write_bytes(b"0" * (300 - left) * 1000)
        try:
            with store.writing(path, "perturbations", ids, HEADER) as shard:
                for image_id in ids:
                    if image_id not in shard.done:
                        shard.put(image_id, array(image_id), ATTRIBUTES)
                        computed.append(image_id)
        except OSError as error:
            sentences.append(str(error))
        ballast.unlink()
    assert len(sentences) > 5 and all(one.startswith(sentence) for one in sentences)
    # nothing is computed again but the image that did not fit any more
    assert computed == ids
    assert path.read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert subprocess.run(["mount", "-o", "remount,ro", small_disk]).returncode == 0
    with pytest.raises(OSError, match=r"b.h5: cannot be written \(Read-only file system\); make its folder writable"):
        write(small_disk / "b.h5")


def test_a_folder_that_may_not_be_written_to_gives_a_sentence(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir(mode=0o555)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65534)
        with pytest.raises(OSError, match=r"a.h5: cannot be written \(.*\); make its folder writable") as caught:
            write(folder / "a.h5")
    finally:
        if root:
            os.seteuid(0)
    assert caught.value.errno is None  # a text of ours, see dag.workflow.startup


# Files that are not what they should be


def changed(path: Path, change) -> None:
    """Change a shard with h5py, which keeps the seal or loses it: nobody changes a shard unnoticed."""
    with h5py.File(path, "a") as file:
        change(file)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def lose_the_seal(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def make_foreign(path: Path) -> None:
    path.unlink()
    with h5py.File(path, "w") as file:
        file[IDS[0]] = np.zeros(3)


def make_text(path: Path) -> None:
    path.write_text("not HDF5 at all")


def make_empty(path: Path) -> None:
    path.write_bytes(b"")


def make_old(path: Path) -> None:
    """As written before there were seals."""
    path.unlink()
    with h5py.File(path, "w", libver="earliest") as file:
        file.attrs.update({"dag": 1, "kind": "perturbations", "complete": True, "header": "{}", "ids": "[]"})


def make_newer(path: Path) -> None:
    make_old(path)
    changed(path, lambda file: file.attrs.update(dag=store.FORMAT + 1))


def change_an_attribute(path: Path) -> None:
    changed(path, lambda file: file[IDS[0]].attrs.update(iterations=7))


def change_the_header(path: Path) -> None:
    changed(path, lambda file: file.attrs.update(header="{}"))


def swap_two_arrays(path: Path) -> None:
    """Both are intact, but in the wrong place."""

    def swap(file):
        file.move(IDS[0], "x")
        file.move(IDS[1], IDS[0])
        file.move("x", IDS[1])

    changed(path, swap)


TRUNCATED = "a.h5: truncated or not an HDF5 file; delete it and run the workflow again$"
CHANGED = (
    "a.h5: (the index or the header is damaged|truncated or changed since it was made); delete .* run the workflow"
)
SENTENCES = {
    Path.unlink: "a.h5: no such shard; run the workflow to make it$",
    truncate: TRUNCATED,
    make_text: TRUNCATED,
    make_empty: TRUNCATED,
    lose_the_seal: "a.h5: truncated or changed since it was made; delete it and run the workflow again$",
    make_foreign: "a.h5: an HDF5 file, but not a shard of this project; delete it and run the workflow again$",
    make_old: "a.h5: shard format 1, this version reads 2; delete it and run the workflow again$",
    make_newer: "a.h5: shard format 3, this version reads 2; delete it and run the workflow again$",
    change_an_attribute: CHANGED,
    change_the_header: CHANGED,
    swap_two_arrays: CHANGED,
}


@pytest.mark.parametrize("damage", SENTENCES, ids=lambda damage: damage.__name__)
def test_a_file_that_is_not_a_complete_shard_is_refused(tmp_path, damage):
    path = tmp_path / "a.h5"
    write(path)
    damage(path)
    for look in (
        lambda: store.read_header(path),
        lambda: store.read(path, IDS[0]),
        lambda: store.read_attributes(path),
    ):
        with pytest.raises(ValueError, match=SENTENCES[damage]):
            look()
    # and it is replaced
    assert write(path) == IDS
    assert same_bits(store.read(path, IDS[0])[0], array(IDS[0]))


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


def test_a_wrong_bit_in_an_array_is_found_with_its_image(tmp_path):
    path = tmp_path / "a.h5"
    write(path)
    with h5py.File(path) as file:
        first, size = encoding.place(file[IDS[0]])
    content = path.read_bytes()
    for position in (first, first + size // 2, first + size - 1):
        path.write_bytes(content[:position] + bytes([content[position] ^ 8]) + content[position + 1 :])
        assert store.read_header(path) and store.read_attributes(path)
        with pytest.raises(ValueError, match=f"a.h5: the data of image {IDS[0]} are damaged; delete it and run"):
            store.read(path, IDS[0])
        assert same_bits(store.read(path, IDS[1])[0], array(IDS[1]))


def test_all_but_the_arrays_is_in_the_digest(tmp_path):
    """Independent of HDF5: the arrays are found by what they must be, deflated and shuffled."""
    path = tmp_path / "a.h5"
    write(path)
    content = path.read_bytes()
    size, digest, magic = encoding.SEAL.unpack(content[-encoding.SEAL.size :])
    places = json.loads(content[-encoding.SEAL.size - size : -encoding.SEAL.size])
    assert magic == b"dag seal" and len(places) == len(IDS)
    rest = bytearray(content[: -encoding.SEAL.size])
    found = set()
    for first, length in reversed(places):
        plain = np.frombuffer(zlib.decompress(rest[first : first + length - 4]), np.uint8)  # 4: the checksum
        found.add(plain.reshape(4, -1).T.tobytes())
        del rest[first : first + length]
    assert hashlib.sha256(rest).digest() == digest
    assert found == {array(image_id).tobytes() for image_id in IDS}


def each_wrong_bit_is_noticed(path: Path, positions) -> None:
    """Every file with one wrong bit gives a sentence when it is read."""
    ids = IDS[1:]
    write(path, ids=ids)
    content = path.read_bytes()
    for position in positions(8 * len(content)):
        wrong = bytearray(content)
        wrong[position // 8] ^= 1 << position % 8
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: .* run the workflow"):  # noqa: PT012
            with store.reading(path, "perturbations") as file:
                for image_id in ids:
                    store.get(file, image_id)
            pytest.fail(f"bit {position} is wrong and nobody noticed")


def test_a_wrong_bit_is_noticed_wherever_it_is(tmp_path):
    each_wrong_bit_is_noticed(tmp_path / "a.h5", lambda size: range(0, size, 211))


@pytest.mark.slow
def test_a_wrong_bit_is_noticed_wherever_it_is_at_more_places(tmp_path):
    each_wrong_bit_is_noticed(tmp_path / "a.h5", lambda size: range(0, size, 11))


# Text


def test_text_and_json_replace_the_old_file_at_once(tmp_path):
    path = tmp_path / "new" / "a.json"
    files.write_json(path, {"a": [1.5, None], "b": "é"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": [1.5, None], "b": "é"}
    before = path.read_text()
    # JSON has no NaN; the old file stays as it was
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, float("nan"))
    assert path.read_text() == before
    files.write_text(path, "↓ ±\n")
    assert path.read_text(encoding="utf-8") == "↓ ±\n"
    assert list(path.parent.iterdir()) == [path]


def test_a_crash_while_writing_leaves_the_old_text(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")

    def crash(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(store.os, "replace", crash)
    with pytest.raises(OSError, match="no space left"):
        files.write_text(path, "new")
    assert path.read_text() == "old"
