"""Every reader of a released network finds its layers under the names of the released prototxt, and no others."""

import functools
import json

import numpy as np
import pytest
import test_caffe_detection as detection
import test_caffe_segmentation as segmentation
from published_layers import RELEASES
from test_caffemodel import caffemodel
from torch import nn

# Prototxt: the reader of what was trained with it, narrow.
READERS = {
    "py-faster-rcnn models/pascal_voc/ZF/faster_rcnn_end2end": "zf",
    "py-faster-rcnn models/pascal_voc/ZF/faster_rcnn_alt_opt": "zf",
    "py-faster-rcnn models/pascal_voc/VGG16": "vgg16",
    "py-R-FCN models/pascal_voc/ResNet-50": "resnet50",
    "py-R-FCN models/pascal_voc/ResNet-101": "resnet101",
    "voc-fcn8s/": "fcn8s",
    "voc-fcn32s/": "fcn32s",
    "voc-fcn-alexnet/": "fcn-alexnet",
    "deeplab_v2 voc2012/config/deeplab_largeFOV": "aspp",
    "DAG prototxt/fcn_8s_deploy": "fcn8s",
    "DAG prototxt/fcn_alexnet_deploy": "fcn-alexnet",
    "pytorch-deeplab-resnet data/test_513": "deeplab-resnet101",
}
# Layer of a file: what ours is called.
OURS = {"rpn_conv1": "rpn_conv/3x3"}
every_release = pytest.mark.parametrize("prototxt", RELEASES)


def load(prototxt: str, path=None) -> nn.Module:
    (name,) = (name for part, name in READERS.items() if part in prototxt)
    if name in detection.FULL:
        return detection.make(name, path and {"caffemodel": path})
    factory = segmentation.NETWORKS[name.removeprefix("deeplab-")][0]
    return factory(caffemodel=path) if path else factory()


def ignored(prototxt: str) -> set[str]:
    """Copies of the whole network that its file holds besides."""
    names = RELEASES[prototxt]
    return {name for name in names if "_res05" in name or "_res075" in name} if "deeplab-resnet" in prototxt else set()


def layers_of(network: nn.Module) -> dict[str, list[np.ndarray]]:
    """Tensors of a network by layer, in the order of the blobs."""
    layers = {}
    for key, tensor in network.state_dict().items():
        layers.setdefault(key.rpartition(".")[0].rpartition(".")[2], []).append(tensor.numpy())
    return layers


@functools.cache
def blobs(prototxt: str) -> dict[str, list[np.ndarray]]:
    """Random blobs of every layer of a release; of those without a place in the network, of any shape."""
    rng, layers = np.random.default_rng(3), layers_of(load(prototxt))
    shapes = {name: [tensor.shape for tensor in tensors] for name, tensors in layers.items()}
    found = {name: shapes.get(OURS.get(name, name), [(2, 3)]) for name in RELEASES[prototxt]}
    return {name: [rng.uniform(0.5, 1.5, shape).astype(np.float32) for shape in of] for name, of in found.items()}


def write(path, layers: dict[str, list[np.ndarray]]):
    path.write_bytes(caffemodel({name: ("", arrays) for name, arrays in layers.items()}))
    return path


@pytest.mark.shared
def test_names_are_those_of_the_prototxts(shared):
    published = json.loads((shared / "layers" / "layers.json").read_text())
    names = {entry["prototxt"]: sorted(entry["layers_with_weights"]) for entry in published}
    assert len(names) == len(published)
    assert names == {prototxt: sorted(layers) for prototxt, layers in RELEASES.items()}


@every_release
def test_every_layer_of_a_release_is_used(prototxt, tmp_path):
    written = blobs(prototxt)
    loaded = layers_of(load(prototxt, write(tmp_path / "released.caffemodel", written)))
    used = {OURS.get(name, name): arrays for name, arrays in written.items() if name not in ignored(prototxt)}
    assert loaded.keys() == used.keys()
    for name, arrays in used.items():
        for blob, tensor in zip(arrays, loaded[name], strict=True):
            np.testing.assert_array_equal(tensor, blob, err_msg=name)


@every_release
def test_a_layer_that_is_missing_is_named(prototxt, tmp_path):
    used = [name for name in RELEASES[prototxt] if name not in ignored(prototxt)]
    for missing in dict.fromkeys([*used[:: max(1, len(used) // 12)], *used[-3:]]):
        rest = {name: arrays for name, arrays in blobs(prototxt).items() if name != missing}
        with pytest.raises(ValueError, match=f"released.caffemodel: layer '{OURS.get(missing, missing)}' is missing"):
            load(prototxt, write(tmp_path / "released.caffemodel", rest))


@every_release
@pytest.mark.parametrize("extra", ["fc8", "scale_pool4", "conv1_1_res05", "fc1_voc12_c0_res05", "fc1_voc12_res05_c4"])
def test_a_layer_that_is_left_over_is_named(prototxt, extra, tmp_path):
    more = blobs(prototxt) | {extra: [np.ones((2, 3), np.float32)]}
    with pytest.raises(ValueError, match=f"released.caffemodel: layer '{extra}' has weights but no place"):
        load(prototxt, write(tmp_path / "released.caffemodel", more))
