"""One forward pass of a network, blob by blob under Caffe's names, to compare with an independent Caffe runtime.

    python -m dag.networks.caffe.compare NAME --weights FILE (--image IMAGE | --data DATA.npy) [--output BLOBS.npz]

NAME is an entry of config/networks.yaml.  A blob has the values of pycaffe's net.blobs[name].data after the
pass, so it includes the layers that Caffe computes in place (BatchNorm, Scale, ReLU, Dropout).  docs/networks.md
shows how to compare.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from dag.data import image_files, voc
from dag.networks import building, interface
from dag.networks.caffe import layers as caffe
from dag.networks.caffe.detector import CaffeDetector, Features
from dag.networks.caffe.faster_rcnn import other_names
from dag.networks.interface import Network, Segmenter
from dag.networks.two_stage import RegionDetector, rois

NETWORKS = Path(__file__).parents[3] / "config" / "networks.yaml"

# Layers whose output blob has another name.
NAMES = {"rpn_conv/3x3": "rpn/output"}

# Option of the command line: attribute of a detector.
SETTINGS = {"nms": "proposal_nms", "proposals": "proposals", "min_size": "smallest"}


@torch.no_grad()
def blobs(
    network: Network,
    images: Tensor | None = None,
    data: Tensor | None = None,
    scale: float = 1.0,
    names: Mapping[str, str] | None = None,
) -> dict[str, np.ndarray]:
    """Outputs of the layers of a network in one forward pass, in the order of computation.

    Parameters
    ----------
    network : Network
        In evaluation mode.  The settings of detectors (`proposal_nms`, `proposals`, `candidates`,
        `smallest`) are its attributes.
    images : Tensor (1, 3, H, W), optional
        RGB in [0, 255].
    data : Tensor (1, 3, H, W), optional
        Instead of images: Caffe's input, BGR with the mean subtracted, for a detector also resized.  Only for
        networks that were released for Caffe.
    scale : float
        With `data` of a detector: pixels of `data` per pixel of the image, third number of im_info.
    names : mapping of str to str, optional
        Layer -> blob, where the names differ; by default `NAMES`.

    Returns
    -------
    dict of str to ndarray
        Output of every module without submodules, under the last part of its name, which is the layer's name
        in networks released for Caffe (under the full name if two modules share the last part).  A layer that
        is computed in place changes the blob of the layer before it.  Modules that are called several times
        are named by `network.name_in_pass`, otherwise with the endings .2, .3, and so on.  "data" is the input
        of the first module.

        Segmentation networks also have the outputs of `body` and `upsample`, as `network.blob_names` or
        "body" and "score"; Caffe's scores have the size of "data", in DeepLab that of the frame.

        Detectors with proposals also have "rois" (R, 5), best first: image and corners in the frame of "data" (of
        the image if the network was not released for Caffe), and "cls_prob" (R, C).  Those released for Caffe
        also have "im_info" (1, 3), "bbox_pred" (R, 4 C) or (R, 8), and "rpn_cls_prob" (1, 2, 9 h, w), which
        is called "proposal_cls_prob" if its scores are called "proposal_cls_score".

    Raises
    ------
    ValueError
        If both or neither of images and data are given, or the network cannot take them.
    """
    if (images is None) == (data is None):
        raise ValueError("give either images or data")
    released = hasattr(network, "blob_names") or isinstance(network, CaffeDetector)
    if data is not None and not released:
        raise ValueError(f"{type(network).__name__} was not released for Caffe; give an image instead of data")
    names = NAMES if names is None else names
    with _recorded(network, names) as found:
        if isinstance(network, Segmenter):
            last = _segmentation(network, found, images, data, released)
        else:
            last = _detection(network, found, images, data, scale, names)
    return {name: tensor.cpu().numpy() for name, tensor in (found | last).items()}


def _segmentation(network: Segmenter, found: dict, images: Tensor | None, data: Tensor | None, released: bool) -> dict:
    low_name, name = getattr(network, "blob_names", ("body", "score"))
    if data is not None:
        images = (data + network.mean).flip(1)
    low = network.body(images)
    size = (found["data"] if released else images).shape[-2:]
    return {low_name: low, name: network.upsample(low, size)}


def _detection(
    network: interface.Detector,
    found: dict,
    images: Tensor | None,
    data: Tensor | None,
    scale: float,
    names: Mapping[str, str],
) -> dict:
    if data is None:
        features = network.features(images)
    else:
        resized = tuple(data.shape[-2:])
        features = Features(*network.pass_trunk(data), tuple(round(side / scale) for side in resized), resized, scale)
    if not isinstance(network, RegionDetector):
        return {}
    limits = {"limit": network.proposals, "candidates": network.candidates}
    proposals = network.propose(features, nms=network.proposal_nms, **limits)
    scores, deltas = network.regions(features, proposals)
    last = {"cls_prob": network.probabilities(scores)}
    if not isinstance(network, CaffeDetector):
        return {"rois": rois(proposals, deltas)} | last
    if "bbox_pred_pre" in found:
        last["bbox_pred"] = found["bbox_pred_pre"].flatten(1)
    name = names.get("rpn_cls_score", "rpn_cls_score")
    pairs = found[name].unflatten(1, (2, -1)).flatten(2, 3)
    return {
        "im_info": torch.tensor([[*features.resized, features.scale]]),
        name.replace("score", "prob"): pairs.softmax(1),
        "rois": network.windows(features, proposals, network.convention.in_image),
    } | last


@contextmanager
def _recorded(network: nn.Module, names: Mapping[str, str]) -> Iterator[dict[str, Tensor]]:
    """Blobs of the passes made in the context, by name.

    The tensors are not copied, so layers that are computed in place later, such as ReLU, change them as in Caffe.
    """
    leaves = {path: module for path, module in network.named_modules() if next(module.children(), None) is None}
    short = {path: path.rpartition(".")[2] for path in leaves}
    if len(set(short.values())) < len(short):
        short = {path: path for path in leaves}
    name_in_pass = getattr(network, "name_in_pass", lambda name, number: f"{name}.{number + 1}" if number else name)
    found: dict[str, Tensor] = {}
    passes: dict[str, int] = {}  # in the order of the first pass

    def recorder(path: str) -> Callable:
        def record(module: nn.Module, inputs: tuple, output: object) -> None:
            if not isinstance(output, Tensor) or not inputs or output is inputs[0]:
                return
            if isinstance(module, caffe.InPlace):
                name = next(name for name, tensor in found.items() if tensor is inputs[0])
            else:
                number = passes.get(path, 0)
                passes[path] = number + 1
                if path == next(iter(passes)):
                    found[name_in_pass("data", number)] = inputs[0]
                name = name_in_pass(names.get(short[path], short[path]), number)
            found[name] = output

        return record

    handles = [module.register_forward_hook(recorder(path)) for path, module in leaves.items()]
    elide = getattr(network, "elide", False)
    if elide:
        network.elide = False  # compute the maps in full, see dag.networks.layers.border
    try:
        yield found
    finally:
        if elide:
            network.elide = True
        for handle in handles:
            handle.remove()


def table(found: Mapping[str, np.ndarray]) -> str:
    """Name, shape, lowest, mean and highest value of every blob."""
    lines = [f"{'blob':<28}{'shape':>22}{'min':>14}{'mean':>14}{'max':>14}"]
    for name, blob in found.items():
        shape = " x ".join(map(str, blob.shape))
        values = (blob.min(), blob.mean(dtype=np.float64), blob.max()) if blob.size else ()
        lines.append(f"{name:<28}{shape:>22}" + "".join(f"{value:14.6g}" for value in values))
    return "\n".join(lines)


def summary(network: Network, images: Tensor, best: int = 10) -> str:
    """Final output of a network for an image: the share of each class, or the `best` detections."""
    if isinstance(network, Segmenter):
        labels, counts = np.unique(network.label_map(images).numpy(), return_counts=True)
        shares = sorted(zip(counts / counts.sum(), labels, strict=True), reverse=True)
        return "label map: " + ", ".join(f"{voc.CLASSES[label]} {share:.2%}" for share, label in shares)
    (found,) = network.detect(images)
    lines = [f"{len(found.scores)} detections, at most {best} are shown"]
    columns = (tensor[:best].tolist() for tensor in (found.boxes, found.labels, found.scores))
    for box, label, score in zip(*columns, strict=True):
        lines.append(f"{voc.CLASSES[label]:<14}{score:8.4f}" + "".join(f"{corner:9.2f}" for corner in box))
    return "\n".join(lines)


def write(path: Path, found: Mapping[str, np.ndarray]) -> None:
    """Write blobs to an .npz file, float32; a temporary file is renamed when it is complete."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            np.savez(file, **found)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def read_data(path: Path) -> Tensor:
    """Read an array (1, 3, H, W) of an .npy file as float32.

    Raises
    ------
    ValueError
        If the file does not hold such an array of finite numbers.
    """
    advice = "give a file that numpy.save made from net.blobs['data'].data"
    try:
        data = np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path}: cannot be read as an array ({error}); {advice}") from error
    if not isinstance(data, np.ndarray) or data.dtype.kind not in "fiu":
        raise ValueError(f"{path}: does not hold one array of numbers; {advice}")
    if data.ndim != 4 or data.shape[:2] != (1, 3) or 0 in data.shape:
        raise ValueError(f"{path}: the array has the shape {data.shape} instead of (1, 3, height, width); {advice}")
    if not np.isfinite(data).all():
        raise ValueError(f"{path}: the array has values that are not finite; {advice}")
    return torch.from_numpy(data.astype(np.float32))


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code.  Bad input is one sentence on standard error and code 1."""
    parser = argparse.ArgumentParser(
        prog="python -m dag.networks.caffe.compare", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("name", help="entry of `networks` in the configuration")
    parser.add_argument("--weights", action="append", default=[], metavar="[ROLE=]FILE",
                        help="weight file; its role is `caffemodel` by default")  # fmt: skip
    parser.add_argument("--image", type=Path, help="JPEG or PNG; the label map or the detections are printed too")
    parser.add_argument(
        "--data", type=Path, help="instead of an image: .npy file (1, 3, H, W), the input of Caffe, BGR minus mean"
    )
    parser.add_argument("--scale", type=float, help="with --data of a detector: third number of im_info (default: 1)")
    parser.add_argument("--output", type=Path, help="write the blobs to this .npz file")
    parser.add_argument(
        "--blobs", default="", metavar="PATTERN", help="only blobs whose names contain this regular expression"
    )
    parser.add_argument(
        "--nms", type=float, help="IoU above which proposals are suppressed (default: that of the network)"
    )
    parser.add_argument(
        "--proposals", type=int, help="number of proposals after suppression (default: that of the network)"
    )
    parser.add_argument(
        "--min-size",
        type=float,
        help="smallest side of a proposal in pixels of the image (default: that of the network)",
    )
    parser.add_argument(
        "--networks", type=Path, default=NETWORKS, help="configuration with the entry (default: config/networks.yaml)"
    )
    try:
        _run(parser.parse_args(arguments))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _run(options: argparse.Namespace) -> None:
    if (options.image is None) == (options.data is None):
        raise ValueError("give either --image or --data")
    if options.scale is not None and (options.image or not options.scale > 0):
        raise ValueError("--scale is a number above 0 that goes with --data; an image is resized by the network")
    if options.output and (options.output.is_dir() or not options.output.parent.is_dir()):
        raise ValueError(f"--output {options.output}: name a file in a folder that exists")
    if options.image:
        images, data = torch.from_numpy(image_files.read_picture(options.image))[None], None
    else:
        images, data = None, read_data(options.data)
    files = _files(options.weights)
    network = _build(options.networks, options.name, files)
    for option, attribute in SETTINGS.items():
        value, flag = getattr(options, option), "--" + option.replace("_", "-")
        if value is None:
            continue
        if value < 0:
            raise ValueError(f"{flag}: {value} is below 0; leave it out for the network's own")
        if not hasattr(network, attribute):
            raise ValueError(f"{flag}: {options.name} has no such setting; leave it out")
        setattr(network, attribute, value)
    names = NAMES
    if isinstance(network, CaffeDetector):
        for role in files.keys() & {"caffemodel", "proposal_caffemodel"}:
            names = names | other_names(files[role])
    found = blobs(network, images, data, options.scale or 1.0, names)
    try:
        found = {name: blob for name, blob in found.items() if re.search(options.blobs, name)}
    except re.error as error:
        raise ValueError(f"--blobs {options.blobs!r}: not a regular expression ({error})") from error
    if not found:
        raise ValueError(f"--blobs {options.blobs!r}: no blob has such a name; leave it out to see all names")
    print(table(found))
    if images is not None:
        print(summary(network, images))
    if options.output:
        write(options.output, found)


def _files(weights: list[str]) -> dict[str, Path]:
    """Weight files by role."""
    files = {}
    for text in weights:
        role, equals, path = text.partition("=")
        if not equals or not role.isidentifier():
            role, path = "caffemodel", text
        if role in files:
            raise ValueError(f"--weights: two files for the role {role!r}; give each role once")
        files[role] = Path(path)
    if not files:
        raise ValueError("give the weights that Caffe ran with: --weights FILE, or --weights ROLE=FILE for several")
    return files


def _build(config: Path, name: str, files: dict[str, Path]) -> Network:
    try:
        entries = yaml.safe_load(config.read_text())["networks"]
    except (OSError, ValueError, yaml.YAMLError, TypeError, KeyError) as error:
        raise ValueError(f"{config}: cannot be read as a configuration of `networks` ({error})") from error
    if name not in entries:
        raise ValueError(f"network {name!r} is not in {config}; known are {', '.join(entries)}")
    entry = entries[name]
    if "of" in entry:
        raise ValueError(f"network {name!r} in {config} is {entry['of']} behind a defence; compare {entry['of']}")
    return building.build(entry["architecture"], entry.get("arguments"), files)


if __name__ == "__main__":
    sys.exit(main())
