"""From published archives to image sets, through the real workflow and a local server; real lists and files."""

import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from overlays import merge

from dag import config as plan
from dag import mini, voc

ROOT = Path(__file__).parents[1]
TRAINVAL_2007, TEST_2007, TRAINVAL_2012 = (
    "VOCtrainval_06-Nov-2007.tar",
    "VOCtest_06-Nov-2007.tar",
    "VOCtrainval_11-May-2012.tar",
)
SAMPLES = [
    "resources/VOCdevkit/VOC2012/ImageSets/Segmentation/sample.txt",
    "resources/VOCdevkit/VOC2012/ImageSets/Main/sample.txt",
    "resources/VOCdevkit/VOC2007/ImageSets/Main/sample.txt",
]


# The lists of the pocket experiment


def test_sample_of_lists_by_hand():
    val = ["2007_000001", "2007_000002", "2007_000006", "2008_000003"]
    test = ["000001", "000003", "000004", "000005", "000006", "000008", "000010"]
    assert voc.sample(val, test, every=2) == (["2007_000001", "2007_000006"], ["000003", "000005", "000010"])


def test_sample_of_lists_as_long_as_the_real_ones():
    test = [f"{number:06d}" for number in range(1, 9905, 2)]  # 4952 images
    val = [f"2007_{number:06d}" for number in range(1, 2080, 20)]  # 104 of them
    val += [f"2007_{number:06d}" for number in range(2, 436, 2)]  # 217 others
    val += [f"2009_{number:06d}" for number in range(1, 1129)]  # 1128 that have the numbers of test images
    assert (len(test), len(val)) == (4952, 1449)
    both, only_2007 = voc.sample(iter(val), iter(test))
    assert both == val[:104]
    assert len(only_2007) == 48  # 4848 = 48 * 101
    assert not {f"2007_{image_id}" for image_id in only_2007} & set(both)
    assert only_2007[0] == "000003" and set(only_2007) < set(test)


def test_lists_without_a_common_image():
    with pytest.raises(ValueError, match="no image is in VOC2012 Segmentation/val and VOC2007 Main/test"):
        voc.sample(["2008_000001"], ["000001"])


# The configuration


def configuration(*overlays: dict) -> dict:
    files = ["networks", "image_sets", "downloads", "config", "pocket"]
    merged: dict = {}
    for overlay in [yaml.safe_load((ROOT / f"config/{name}.yaml").read_text()) for name in files] + list(overlays):
        merged = merge(merged, overlay)
    plan.check(merged, ROOT / "config/schemas/config.schema.yaml")
    return merged


def test_every_weight_file_can_be_downloaded():
    config = configuration()
    files = [file for network in config["networks"].values() for file in network.get("files", {}).values()]
    assert len(files) == 6 and set(files) < set(config["downloads"])


@pytest.mark.shared
def test_checksums_are_those_of_the_files_the_code_is_checked_with(shared):
    for name, entry in configuration()["downloads"].items():
        if not name.startswith("VOC"):
            content = (shared / "weights" / name).read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (entry["size"], entry["sha256"])


@pytest.mark.shared
def test_image_sets_of_a_local_voc_folder(shared):
    folder = str(shared / "voc")
    sets = plan.with_local_voc(configuration({"voc": folder}))["image_sets"]
    for name, size in [("pocket-segmentation", 72), ("pocket-detection", 59)]:
        parts = [part | {"root": part["root"].format(voc=folder)} for part in sets[name]["parts"]]
        assert len(voc.read_image_set(parts, sets[name]["size"])) == size


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
        self.send_header("Content-Type", "application/x-tar")
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
        httpd.files, httpd.requests = {}, []
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield SimpleNamespace(
            address=f"http://127.0.0.1:{httpd.server_port}", files=httpd.files, requests=httpd.requests
        )
        httpd.shutdown()
        thread.join()


def archive(folder: Path, name: str, year: str, lists: dict) -> bytes:
    """An archive in VOC's layout with generated images, and the instance masks that nothing here reads."""
    root = folder / name / "VOCdevkit" / year
    mini.make_voc(root, lists, seed=7)
    (root / "SegmentationObject").mkdir()
    (root / "SegmentationObject" / "000001.png").write_bytes(b"instances")
    with tarfile.open(folder / f"{name}.tar", "w") as tar:
        tar.add(folder / name / "VOCdevkit", "VOCdevkit")
    return (folder / f"{name}.tar").read_bytes()


@pytest.fixture
def archives(tmp_path) -> dict[str, bytes]:
    folder = tmp_path / "published"
    lists_2012 = {
        "Main/trainval": ["2008_000001", "2008_000002"],
        "Segmentation/train": ["2008_000001"],
        "Segmentation/val": ["2007_000001", "2007_000004", "2007_000005", "2008_000002"],
    }
    return {
        TRAINVAL_2007: archive(folder, "a", "VOC2007", {"Main/trainval": ["000004", "000007"]}),
        TEST_2007: archive(folder, "b", "VOC2007", {"Main/test": ["000001", "000003", "000005"]}),
        TRAINVAL_2012: archive(folder, "c", "VOC2012", lists_2012),
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


def overlay(server, archives: dict[str, bytes], folders: dict[str, list[str]], **more: bytes) -> dict:
    """Downloads with these folders of the server as mirrors; `more` have no published checksum."""
    downloads = {}
    for name, content in archives.items():
        urls = [f"{server.address}/{folder}/{name}" for folder in folders[name]]
        downloads[name] = {"urls": urls, "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    for name, content in more.items():
        server.files[f"/good/{name}"] = content
        downloads[name] = {"urls": [f"{server.address}/good/{name}"]}
    sizes = {"pocket-segmentation": {"size": 2}, "pocket-detection": {"size": 3}}
    return {"downloads": downloads, "image_sets": sizes}


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
    for name, content in archives.items():
        server.files[f"/wrong/{name}"] = content[:-1] + b"!"
        server.files[f"/cut/{name}"] = server.files[f"/good/{name}"] = content
    by_hand = {name: downloads / name for name in archives}
    by_hand[TRAINVAL_2012].write_bytes(b"another file")
    old = hashlib.sha256(b"old").hexdigest()
    lock = folder / "resources/downloads.lock.json"
    lock.write_text(json.dumps({"other": old}))
    published = {name: entry["sha256"] for name, entry in config["downloads"].items() if "sha256" in entry}

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
    assert f"To go on without a mirror, put the file at {where}; its SHA-256 must be {published[TEST_2007]}" in said
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
    sets = configuration(config)["image_sets"]
    images = {}
    for name in ("pocket-segmentation", "pocket-detection"):
        parts = [part | {"root": part["root"].format(voc=kit)} for part in sets[name]["parts"]]
        images[name] = voc.read_image_set(parts, sets[name]["size"])
    both = [(kit / "VOC2012", "2007_000001"), (kit / "VOC2012", "2007_000005")]
    assert images == {"pocket-segmentation": both, "pocket-detection": [*both, (kit / "VOC2007", "000003")]}
    for root, image_id in images["pocket-detection"]:
        assert voc.read_image(root, image_id).shape == (3, *voc.read_label_map(root, image_id).shape)
        assert len(voc.read_objects(root, image_id).boxes) > 0

    # Nothing is done twice, not even where mirrors have changed.
    mirrors = {name: ["elsewhere"] for name in archives}
    server.requests.clear()
    result = snakemake(folder, overlay(server, archives, mirrors) | {"weights": "own"}, *SAMPLES)
    assert result.returncode == 0 and "Nothing to be done" in result.stdout, result.stdout
    assert not server.requests
