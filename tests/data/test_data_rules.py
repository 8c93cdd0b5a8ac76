"""From published archives to image sets, through the real workflow and a local server; real lists and files."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from fake_archives import MEMBERS, sbd_archive, scene, voc_archive, weights_archive
from overlays import merge

from dag.data import image_sets, voc
from dag.workflow import configuration, layers, paths

ROOT = Path(__file__).parents[2]
TRAINVAL_2007, TEST_2007, TRAINVAL_2011, TRAINVAL_2012, SBD = (
    "VOCtrainval_06-Nov-2007.tar",
    "VOCtest_06-Nov-2007.tar",
    "VOCtrainval_25-May-2011.tar",
    "VOCtrainval_11-May-2012.tar",
    "benchmark.tgz",
)
RULES = (ROOT / "rules" / "data.smk").read_text()
SAMPLES = [
    "resources/VOCdevkit/VOC2012/ImageSets/Segmentation/sample.txt",
    "resources/VOCdevkit/VOC2012/ImageSets/Main/sample.txt",
    "resources/VOCdevkit/VOC2007/ImageSets/Main/sample.txt",
]


# The lists of the pocket experiment


def test_sample_of_lists_by_hand():
    val = ["2007_000001", "2007_000002", "2007_000006", "2008_000003"]
    test = ["000001", "000003", "000004", "000005", "000006", "000008", "000010"]
    assert image_sets.sample(val, test, every=2) == (["2007_000001", "2007_000006"], ["000003", "000005", "000010"])


def test_sample_of_lists_as_long_as_the_real_ones():
    test = [f"{number:06d}" for number in range(1, 9905, 2)]  # 4952 images
    val = [f"2007_{number:06d}" for number in range(1, 2080, 20)]  # 104 of them
    val += [f"2007_{number:06d}" for number in range(2, 436, 2)]  # 217 others
    val += [f"2009_{number:06d}" for number in range(1, 1129)]  # 1128 that have the numbers of test images
    assert (len(test), len(val)) == (4952, 1449)
    both, only_2007 = image_sets.sample(iter(val), iter(test))
    assert both == val[:104]
    assert len(only_2007) == 48  # 4848 = 48 * 101
    assert not {f"2007_{image_id}" for image_id in only_2007} & set(both)
    assert only_2007[0] == "000003" and set(only_2007) < set(test)


def test_lists_without_a_common_image():
    with pytest.raises(ValueError, match="no image is in VOC2012 Segmentation/val and VOC2007 Main/test"):
        image_sets.sample(["2008_000001"], ["000001"])


# The configuration


def configured(*overlays: dict) -> dict:
    merged: dict = {}
    for file in [*layers.DEFAULTS, "pocket"]:
        merged = merge(merged, yaml.safe_load((ROOT / f"config/{file}.yaml").read_text()))
    for overlay in overlays:
        merged = merge(merged, overlay)
    configuration.check(merged, ROOT / "config/schemas/config.schema.yaml")
    return merged


def images_of(sets: dict, name: str, kit: Path, work: Path = ROOT) -> list[tuple[Path, str]]:
    """Images of an image set, with its size and digest checked."""
    parts = [{key: str(work / path.format(voc=kit)) for key, path in part.items()} for part in sets[name]["parts"]]
    entry = sets[name]
    return image_sets.read_image_set(
        parts, entry["size"], entry.get("sha256"), name=name, repeated=entry.get("repeated", False)
    )


def test_every_weight_file_is_in_downloads():
    """`check` refuses others; here is the proof that it has something to look at."""
    config = configured()
    files = {file for network in config["networks"].values() for file in network.get("files", {}).values()}
    assert {"fcn8s-heavy-pascal.caffemodel", "MobileNetV2-YOLOv3-Nano-voc.cfg"} <= files <= set(config["downloads"])
    with pytest.raises(ValueError, match="file 'fcn8s-heavy-pascal.caffemodel' is not in downloads"):
        configuration.check(
            config | {"downloads": {k: v for k, v in config["downloads"].items() if k[:4] != "fcn8"}},
            ROOT / "config/schemas/config.schema.yaml",
        )


def test_every_member_is_in_the_published_archive():
    """The layouts that other programs use: OpenCV's tests, the authors' scripts."""
    for file, entry in configured()["downloads"].items():
        if "archive" in entry:
            found = [path for path in MEMBERS[entry["archive"]] if Path(path).match(entry["member"])]
            assert len(found) == 1, f"{file}: {found}"


def test_sizes_of_derived_sets_add_up():
    size = {name: entry["size"] for name, entry in configured()["image_sets"].items()}
    assert size["trainaug"] == 1464 + size["sbd-without-voc12"]
    assert size["fcn-9610"] == size["voc11-seg-train"] + size["sbd-train"]
    assert size["voc0712-trainval"] == size["voc07-trainval"] + 11540


def test_every_derived_list_has_its_image_set():
    """Its size and digest are checked when it is made, under its own name."""
    sets = configured()["image_sets"]
    derived = paths.derived_lists({"voc": None})
    assert len(derived) == 6
    for name in derived:
        assert [part["list"] for part in sets[name]["parts"]] == [f"resources/image_sets/{name}.txt"]
    listed = {part["list"] for entry in sets.values() for part in entry["parts"]}
    assert {path for path in listed if "image_sets" in path} == {f"resources/image_sets/{name}.txt" for name in derived}


@pytest.mark.slow
@pytest.mark.parametrize(("listed", "every"), [({"val": 48}, 2), ({"val": 48, "sample": 72}, 3)])
def test_the_zoo_takes_every_so_many_of_the_users_own_sample_or_else_of_val(tmp_path, listed, every):
    lists = tmp_path / "own/VOC2012/ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for name, count in listed.items():
        (lists / f"{name}.txt").write_text("".join(f"2007_{number:06d}\n" for number in range(count)))
    made = "resources/image_sets/zoo-segmentation.txt"
    (tmp_path / "work").mkdir()
    result = snakemake(tmp_path / "work", {"voc": str(tmp_path / "own")}, made)
    assert result.returncode == 0, result.stdout
    found = (tmp_path / "work" / made).read_text().split()
    assert found == [f"2007_{every * number:06d}" for number in range(24)]
    # a shorter list is refused
    (lists / f"{name}.txt").write_text("2007_000001\n2007_000002\n")
    said = snakemake(tmp_path / "work", {"voc": str(tmp_path / "own")}, made).stdout
    assert "image set zoo-segmentation: 2 images in what follows from " in said and "expected 24" in said


@pytest.mark.shared
def test_checksums_are_those_of_the_files_the_code_is_checked_with(shared):
    downloads = configured()["downloads"]
    files = sorted((shared / "weights").iterdir())
    assert {file.name for file in files} & set(downloads)
    for file in files:
        if file.name in downloads:
            content, entry = file.read_bytes(), downloads[file.name]
            assert (len(content), hashlib.sha256(content).hexdigest()) == (entry["size"], entry["sha256"])


@pytest.mark.shared
def test_image_sets_of_a_local_voc_folder(shared):
    folder = str(shared / "voc")
    sets = configuration.with_local_voc(configured({"voc": folder}))["image_sets"]
    for name, size in [("pocket-segmentation", 72), ("pocket-detection", 59)]:
        assert len(images_of(sets, name, Path(folder))) == size
    assert (sets["voc07-test"]["size"], sets["seg11valid"]["size"]) == (4952, 736)


# The workflow


class Handler(BaseHTTPRequestHandler):
    """Serves `server.files` by path; `/cut/...` breaks off in the middle unless asked for the rest."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.requests.append((self.path, self.headers.get("Range")))
        self.close_connection = True
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(match[1]) if match else 0
        self.send_response(206 if match else 200)
        self.send_header("Content-Type", self.server.types.get(self.path, "application/x-tar"))
        if match:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        stop = len(content) // 2 if self.path.startswith("/cut/") and not match else None
        self.wfile.write(content[start:stop])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.files, httpd.types, httpd.requests = {}, {}, []
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield SimpleNamespace(
            address=f"http://127.0.0.1:{httpd.server_port}",
            files=httpd.files,
            types=httpd.types,
            requests=httpd.requests,
        )
        httpd.shutdown()
        thread.join()


# What follows from these lists is worked out by hand in DERIVED.
LISTS_2007 = {"Main/trainval": ["000004", "000007", "000012"], "Main/test": ["000001", "000003", "000005"]}
LISTS_2011 = {"Segmentation/train": ["2008_000001"], "Segmentation/val": ["2007_000001", "2008_000010"]}
LISTS_2012 = {
    "Main/trainval": ["2008_000001", "2008_000002", "2008_000010"],
    "Segmentation/train": ["2008_000001", "2007_000012"],
    "Segmentation/val": ["2007_000004", "2007_000001", "2008_000010", "2007_000005", "2008_000002", "2009_000003"],
}
SBD_TRAIN, SBD_VAL = ["2008_000010", "2008_000001", "2008_000020"], ["2008_000021", "2008_000002"]
DERIVED = {
    "seg11valid": ["2007_000001"],
    "voc11-seg-train": ["2008_000001"],
    "sbd-without-voc12": ["2008_000020", "2008_000021"],
    "table4-687": ["2007_000001", "2007_000005", "2008_000002", "2009_000003"],
    "table4-110": ["2007_000001", "2007_000005", "2009_000003"],
}
SETS = {
    "voc07-test": LISTS_2007["Main/test"],
    "voc07-trainval": LISTS_2007["Main/trainval"],
    "voc12-seg-val": LISTS_2012["Segmentation/val"],
    "sbd-train": SBD_TRAIN,
    "voc0712-trainval": LISTS_2007["Main/trainval"] + LISTS_2012["Main/trainval"],
    "trainaug": ["2008_000001", "2007_000012", "2008_000020", "2008_000021"],
    "fcn-9610": ["2008_000001", *SBD_TRAIN],
    "pocket-segmentation": ["2007_000001", "2007_000005"],
    "pocket-detection": ["2007_000001", "2007_000005", "000003"],
} | DERIVED
SIZE = (60, 45)


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("published")

    def write(name, year, lists, **more):
        return voc_archive(folder, name, year, lists, size=SIZE, **more).read_bytes()

    def some(key):
        return {key: LISTS_2007[key]}

    trainval, test = LISTS_2007.values()
    return {
        TRAINVAL_2007: write(TRAINVAL_2007, 2007, some("Main/trainval"), segmented=trainval),
        TEST_2007: write(TEST_2007, 2007, some("Main/test"), segmented=test),
        TRAINVAL_2011: write(TRAINVAL_2011, 2011, LISTS_2011),
        TRAINVAL_2012: write(TRAINVAL_2012, 2012, LISTS_2012),
        SBD: sbd_archive(folder, SBD_TRAIN, SBD_VAL, size=SIZE).read_bytes(),
        "seg11valid.txt": b"2007_000001\n",
    }


def snakemake(folder: Path, overlay: dict, *targets: str) -> subprocess.CompletedProcess:
    """Run the workflow in a folder of its own with the project's configuration and an overlay."""
    if not (folder / "config").exists():
        (folder / "config").symlink_to(ROOT / "config")
    (folder / "overlay.yaml").write_text(yaml.safe_dump(overlay))
    options = {"snakefile": ROOT / "Snakefile", "directory": folder, "workflow-profile": ROOT / "profiles/default"}
    options |= {"cores": 1, "configfile": folder / "overlay.yaml"}
    command = [sys.executable, "-m", "snakemake", *(f"--{key}={value}" for key, value in options.items())]
    return subprocess.run(
        [*command, "--", *targets],
        env=os.environ | {"no_proxy": "127.0.0.1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=300,
    )


def published(content: bytes) -> dict:
    """Size and all checksums, which replace those of the real file."""
    return {"size": len(content)} | {kind: hashlib.new(kind, content).hexdigest() for kind in ("sha256", "sha1", "md5")}


def overlay(server, archives: dict[str, bytes], folders: dict[str, list[str]], **more: bytes) -> dict:
    """Downloads with these folders of the server as mirrors; `more` have no published checksum."""
    downloads = {}
    for name in folders:
        urls = [f"{server.address}/{folder}/{name}" for folder in folders[name]]
        downloads[name] = {"urls": urls} | published(archives[name])
    for name, content in more.items():
        server.files[f"/good/{name}"] = content
        downloads[name] = {"urls": [f"{server.address}/good/{name}"]}
    sets = {name: {"size": len(ids), "sha256": image_sets.digest(ids)} for name, ids in SETS.items()}
    return {"experiment": "small", "downloads": downloads, "image_sets": sets}


@pytest.mark.slow
def test_from_archives_to_image_sets(server, archives, tmp_path):
    folder = tmp_path / "work"
    downloads = folder / "resources/downloads"
    downloads.mkdir(parents=True)
    mirrors = {
        TRAINVAL_2007: ["wrong", "cut"],
        TEST_2007: ["gone", "wrong"],
        TRAINVAL_2012: ["gone", "good"],
    }
    config = overlay(server, archives, mirrors, first=b"first", other=b"new")
    for name in mirrors:
        server.files[f"/wrong/{name}"] = archives[name][:-1] + b"!"
        server.files[f"/cut/{name}"] = server.files[f"/good/{name}"] = archives[name]
    by_hand = {name: downloads / name for name in mirrors}
    by_hand[TRAINVAL_2012].write_bytes(b"another file")
    old = hashlib.sha256(b"old").hexdigest()
    lock = folder / "resources/downloads.lock.json"
    lock.write_text(json.dumps({"other": old}))
    digests = {name: entry.get("sha256") for name, entry in config["downloads"].items()}

    # One archive comes, one comes from no mirror, one was put there by hand and is a wrong one.
    result = snakemake(folder, config, *SAMPLES, "resources/checked/first", "resources/checked/other")
    said = result.stdout
    assert result.returncode != 0 and "Traceback" not in said, said
    assert (folder / "resources/checked" / TRAINVAL_2007).read_bytes() == archives[TRAINVAL_2007]
    part = len(archives[TRAINVAL_2007]) // 2
    assert [range_ for path, range_ in server.requests if path == f"/cut/{TRAINVAL_2007}"] == [
        None,
        f"bytes={part - 1}-",
    ]
    where = f"resources/downloads/{TEST_2007}"
    assert f"Error: {where} could not be downloaded:" in said
    assert f"/gone/{TEST_2007}: HTTP 404 Not Found" in said
    assert f"/wrong/{TEST_2007}: delivers a file that has sha256 " in said
    assert f"To go on without a mirror, put the file at {where}; its SHA-256 must be {digests[TEST_2007]}" in said
    assert f"Error: resources/downloads/{TRAINVAL_2012} is already there but has 12 bytes instead of" in said
    assert "put the right file in its place" in said and by_hand[TRAINVAL_2012].read_bytes() == b"another file"
    assert f"delivers a file that has sha256 {hashlib.sha256(b'new').hexdigest()} instead of {old}" in said
    assert json.loads(lock.read_text()) == {"first": hashlib.sha256(b"first").hexdigest(), "other": old}
    assert sorted(path.name for path in (folder / "resources/checked").iterdir()) == [TRAINVAL_2007, "first"]

    # The missing archive is put there by hand, the wrong one is removed.
    by_hand[TEST_2007].write_bytes(archives[TEST_2007])
    by_hand[TRAINVAL_2012].unlink()
    server.requests.clear()
    result = snakemake(folder, config, *SAMPLES)
    assert result.returncode == 0, result.stdout
    assert [path for path, _ in server.requests] == [f"/gone/{TRAINVAL_2012}", f"/good/{TRAINVAL_2012}"]
    kit = folder / "resources/VOCdevkit"
    assert sorted(path.relative_to(kit).as_posix() for path in kit.glob("*/*")) == [
        f"{year}/{part}"
        for year in ("VOC2007", "VOC2012")
        for part in ("Annotations", "ImageSets", "JPEGImages", "SegmentationClass")
    ]
    sets = configured(config)["image_sets"]
    images = {name: images_of(sets, name, kit) for name in ("pocket-segmentation", "pocket-detection")}
    both = [(kit / "VOC2012", "2007_000001"), (kit / "VOC2012", "2007_000005")]
    assert images == {"pocket-segmentation": both, "pocket-detection": [*both, (kit / "VOC2007", "000003")]}
    for root, image_id in images["pocket-detection"]:
        assert voc.read_image(root, image_id).shape == (3, *voc.read_label_map(root, image_id).shape)
        assert len(voc.read_objects(root, image_id).boxes) > 0

    # Nothing is done twice, not even where mirrors have changed.
    mirrors = {name: ["elsewhere"] for name in mirrors}
    server.requests.clear()
    (folder / "own").mkdir()
    result = snakemake(folder, overlay(server, archives, mirrors) | {"weights": "own"}, *SAMPLES)
    assert result.returncode == 0 and "Nothing to be done" in result.stdout, result.stdout
    assert not server.requests


PAPER = [f"resources/image_sets/{name}.txt" for name in DERIVED]


@pytest.mark.slow
def test_the_image_sets_of_the_paper(server, archives, tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    server.files |= {f"/{place}/{name}": content for name, content in archives.items() for place in ("good", "cut")}
    mirrors = {name: ["gone", "cut", "good"] for name in archives}
    config = overlay(server, archives, mirrors)
    wrong = config["image_sets"] | {
        "table4-687": {"size": 687, "sha256": None},
        "table4-110": {"size": 3, "sha256": "0" * 64},
    }

    # Two sets are not what they should be: the sentence says which, and the list is not written.
    result = snakemake(folder, config | {"image_sets": wrong}, *PAPER)
    said, made = result.stdout, folder / "resources/image_sets"
    assert result.returncode != 0 and "Traceback" not in said, said
    start = "Error: image set table4-{}: {} in what follows from resources/VOCdevkit/VOC2012/ImageSets/Segmentation/val"
    assert start.format(687, "4 images") in said and "expected 687; unpack the data again" in said
    assert start.format(110, "the ids") in said
    assert f"have SHA-256 {image_sets.digest(SETS['table4-110'])}, expected {'0' * 64}; unpack" in said
    assert sorted(path.stem for path in made.iterdir()) == ["sbd-without-voc12", "seg11valid", "voc11-seg-train"]

    # Nothing but these two is made again; and every set is what was worked out by hand.
    server.requests.clear()
    result = snakemake(folder, config, *PAPER)
    assert result.returncode == 0, result.stdout
    assert not server.requests and "unpack" not in result.stdout, result.stdout
    assert {path.stem: path.read_text().split() for path in made.iterdir()} == DERIVED
    kit = folder / "resources/VOCdevkit"
    sets = configured(config)["image_sets"]
    for name in set(SETS) - {"pocket-segmentation", "pocket-detection"}:
        found = images_of(sets, name, kit, folder)
        assert [image_id for _, image_id in found] == SETS[name]
        for root, image_id in found:
            image, labels, objects = scene(image_id, SIZE)
            assert np.abs(voc.read_image(root, image_id) - image.transpose(2, 0, 1)).mean() < 16
            if root.name == "VOC2012" and "Main" not in sets[name]["parts"][-1]["list"]:
                assert np.array_equal(voc.read_label_map(root, image_id), labels)
                assert [tuple(box) for box in voc.read_objects(root, image_id).boxes] == [box for _, box in objects]
            if root.name == "SBD":
                assert np.array_equal(voc.read_label_map(root, image_id), np.where(labels == voc.VOID, 0, labels))
    assert [root.name for root, _ in images_of(sets, "fcn-9610", kit, folder)] == ["VOC2012", "SBD", "SBD", "SBD"]
    assert sorted(path.relative_to(kit).as_posix() for path in kit.glob("*/*")) == [
        *(f"SBD/{part}" for part in ("ImageSets", "JPEGImages", "SegmentationClass")),
        *(f"VOC2007/{part}" for part in ("Annotations", "ImageSets", "JPEGImages", "SegmentationClass")),
        "VOC2011/ImageSets",
        *(f"VOC2012/{part}" for part in ("Annotations", "ImageSets", "JPEGImages", "SegmentationClass")),
    ]

    # A folder of the user in the place of VOC: its images, the derived lists, SBD from the archive.
    own = tmp_path / "own"
    shutil.copytree(kit, own, ignore=shutil.ignore_patterns("SBD", "VOC2011"))
    other = tmp_path / "other"
    (other / "resources").mkdir(parents=True)
    shutil.copytree(folder / "resources/downloads", other / "resources/downloads")
    for year in own.iterdir():
        year.chmod(0o555)
    try:
        lists = [f"resources/image_sets/{name}.txt" for name in ("seg11valid", "sbd-without-voc12", "table4-110")]
        result = snakemake(other, config | {"voc": str(own)}, *lists)
    finally:
        for year in own.iterdir():
            year.chmod(0o755)
    assert result.returncode == 0, result.stdout
    assert [path.name for path in (other / "resources/VOCdevkit").iterdir()] == ["SBD"]
    local = configuration.with_local_voc(configured(config | {"voc": str(own), "products": ["table_rules"]}))[
        "image_sets"
    ]
    for name in ("voc07-test", "voc0712-trainval", "seg11valid", "trainaug", "table4-110"):
        assert [image_id for _, image_id in images_of(local, name, own, other)] == SETS[name]


@pytest.mark.slow
def test_damaged_sbd_and_strange_lists(server, archives, tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    broken = sbd_archive(
        tmp_path, SBD_TRAIN, SBD_VAL, size=SIZE, replace={"cls/2008_000021.mat": b"MATLAB 5.0"}
    ).read_bytes()
    found = archives | {SBD: broken, "seg11valid.txt": b"2007_000001\n2011_000099\n"}
    server.files |= {f"/good/{name}": content for name, content in found.items()}
    config = overlay(server, found, {name: ["good"] for name in found})
    unpacked = "resources/VOCdevkit/SBD/ImageSets/Segmentation/train.txt"
    result = snakemake(folder, config, "resources/image_sets/seg11valid.txt", unpacked)
    said = result.stdout
    assert result.returncode != 0 and "Traceback" not in said, said
    assert "Error: resources/VOCdevkit/SBD.dataset/cls/2008_000021.mat: not a label map of SBD (" in said
    assert "Error: image set seg11valid: 1 of its ids, the first is 2011_000099, are not in the list" in said
    assert not (folder / unpacked).exists()


def checked(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "resources/checked").iterdir()}


@pytest.mark.slow
def test_members_of_archives(server, tmp_path):
    """From archives in their real layout, from the user's folder, from resources/downloads/."""
    folder, own = tmp_path / "work", tmp_path / "own"
    by_hand = folder / "resources/downloads"
    by_hand.mkdir(parents=True)
    own.mkdir()
    names = ["faster_rcnn_models.tgz", "faster_rcnn_final_model.zip", "rfcn_models.tar.gz"]
    found = {name: weights_archive(tmp_path / "published", name).read_bytes() for name in names}
    server.files |= {f"/good/{name}": content for name, content in found.items()}
    server.files["/good/page.zip"] = b"<html>log in</html>"
    server.types["/good/page.zip"] = "text/html"
    config = overlay(server, found, {name: ["gone", "good"] for name in found})
    downloads = config["downloads"]
    zf, vgg = (f"{net}_faster_rcnn_final.caffemodel" for net in ("ZF", "VGG16"))
    zf_0712 = "faster_rcnn_VOC0712_ZF_proposal_final"
    rn50, rn101 = (f"resnet{depth}_rfcn_final.caffemodel" for depth in (50, 101))
    downloads[zf] = published(f"faster_rcnn_models/{zf}".encode())
    downloads[vgg] = published(b"another file")
    downloads[rn50] = published(b"my own")
    downloads |= {
        "missing": {"archive": names[0], "member": "faster_rcnn_models/CaffeNet.caffemodel"},
        "unknown.caffemodel": {"archive": names[0], "member": f"faster_rcnn_models/{zf}"},
        "several": {"archive": names[0], "member": "*_final.caffemodel"},
        "page": {"archive": "page.zip", "member": "x"},
        "page.zip": {"urls": [f"{server.address}/good/page.zip"]},
    }
    (own / rn50).write_bytes(b"my own")
    (by_hand / rn101).write_bytes(b"\x0a\x07by hand")  # one field of a Protocol Buffers message
    wanted = [f"resources/checked/{name}" for name in (zf, zf_0712, rn50, rn101)]
    bad = [f"resources/checked/{name}" for name in (vgg, "missing", "unknown.caffemodel", "several", "page")]

    result = snakemake(folder, config | {"weights": str(own)}, *wanted, *bad)
    said = result.stdout
    assert result.returncode != 0 and "Traceback" not in said, said
    expected = {
        zf: f"faster_rcnn_models/{zf}".encode(),
        zf_0712: b"output/faster_rcnn_final/faster_rcnn_VOC0712_ZF/proposal_final",
        rn50: b"my own",
        rn101: b"\x0a\x07by hand",
    }
    assert checked(folder) == expected | {name: found[name] for name in names[:2]}
    archive = f"resources/checked/{names[0]}"
    assert f"Error: {archive}: its member faster_rcnn_models/{vgg} has " in said
    assert f"Error: {archive}: there is no file faster_rcnn_models/CaffeNet.caffemodel inside; it holds faster_" in said
    assert (
        f"Error: {archive}: *_final.caffemodel may be any of faster_rcnn_models/{vgg}, faster_rcnn_models/{zf};" in said
    )
    reason = "is not a complete file of Caffe's weights; is this the right archive?"
    assert f"Error: {archive}: its member faster_rcnn_models/{zf} {reason}" in said
    assert "page.zip: answers with a web page instead of the file" in said
    assert not [path for path, _ in server.requests if "rfcn" in path]
    # what nobody has published a checksum of is recorded
    lock = json.loads((folder / "resources/downloads.lock.json").read_text())
    assert lock == {name: hashlib.sha256(expected[name]).hexdigest() for name in (zf_0712, rn101)}

    # Where a file came from stays: neither without the user's folder nor with more in it anything is done again.
    server.requests.clear()
    (own / zf).write_bytes(b"something else")
    for weights in (None, str(own)):
        result = snakemake(folder, config | {"weights": weights}, *wanted)
        assert result.returncode == 0 and "Nothing to be done" in result.stdout, result.stdout
    # until it is deleted; then the user's folder comes first, and is checked
    (folder / wanted[0]).unlink()
    (folder / wanted[1]).unlink()
    (own / zf_0712).write_bytes(b"something else")
    result = snakemake(folder, config | {"weights": str(own)}, *wanted)
    said = result.stdout
    assert result.returncode != 0 and "Traceback" not in said, said
    assert (
        f"delete the entry {zf_0712} from resources/downloads.lock.json and the file resources/downloads/{zf_0712}, "
        in said
    )
    for file, must in (zf, downloads[zf]["sha256"]), (zf_0712, lock[zf_0712]):
        assert f"Error: resources/downloads/{file} could not be downloaded:" in said
        assert f"; its SHA-256 must be {must}" in said
    (own / zf).unlink()
    result = snakemake(folder, config | {"weights": str(own)}, wanted[0])
    assert result.returncode == 0 and checked(folder)[zf] == expected[zf], result.stdout
    assert not server.requests
