"""The reader of Caffe's weights against OpenCV's, which reads the same bytes with Protocol Buffers."""

import re
import struct
import tracemalloc

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from dag.networks.caffe.caffemodel import load, read_blobs

torch.set_num_threads(1)

# A writer of caffemodels; numbers of fields and types as in caffe.proto.

V1_TYPES = {"Convolution": 4, "InnerProduct": 14, "Deconvolution": 39}


def varint(number: int) -> bytes:
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def blob_bytes(array: np.ndarray, legacy: bool = False, packed: bool = True, double: bool = False) -> bytes:
    if legacy:
        shape = (1,) * (4 - array.ndim) + array.shape
        head = b"".join(field(number, size) for number, size in enumerate(shape, 1))
    elif packed:
        head = field(7, field(1, b"".join(varint(size) for size in array.shape)))
    else:
        head = field(7, b"".join(field(1, size) for size in array.shape))
    number, kind, wire_type = (8, "<f8", 1) if double else (5, "<f4", 5)
    values = array.astype(kind)
    if packed:
        return head + field(number, values.tobytes())
    return head + b"".join(varint(number << 3 | wire_type) + value.tobytes() for value in values.ravel())


def caffemodel(layers: dict[str, tuple[str, list[np.ndarray]]], v1: bool = False, **form) -> bytes:
    """A file of layers, name -> (type, blobs), in the format that began in 2014 or in the one before (V1)."""
    parts = [field(1, b"a network")]
    for name, (kind, blobs) in layers.items():
        arrays = [blob_bytes(blob, **form) for blob in blobs]
        if v1:
            layer = field(2, b"bottom") + field(3, b"top") + field(4, name.encode())
            layer += field(5, V1_TYPES.get(kind, 0)) + b"".join(field(6, array) for array in arrays)
        else:
            layer = field(1, name.encode()) + field(2, kind.encode()) + field(3, b"bottom") + field(10, 1)
            layer += b"".join(field(7, array) for array in arrays)
        parts.append(field(2 if v1 else 100, layer))
    return b"".join(parts)


def save(folder, data: bytes):
    path = folder / "network.caffemodel"
    path.write_bytes(data)
    return path


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def small_layers() -> dict:
    return {
        "data": ("Input", []),
        "rpn_conv/3x3": ("Convolution", [numbers(4, 2, 3, 3), numbers(4, seed=1)]),
        "relu": ("ReLU", []),
        "fc": ("InnerProduct", [numbers(5, 4 * 3 * 3, seed=2), numbers(5, seed=3)]),
    }


SMALL_PROTOTXT = """
input: "data" input_shape { dim: 1 dim: 2 dim: 3 dim: 3 }
layer { name: "rpn_conv/3x3" type: "Convolution" bottom: "data" top: "a"
        convolution_param { num_output: 4 kernel_size: 3 pad: 1 } }
layer { name: "fc" type: "InnerProduct" bottom: "a" top: "b" inner_product_param { num_output: 5 } }
"""


def small_network() -> nn.Module:
    return nn.ModuleDict({"rpn_conv/3x3": nn.Conv2d(2, 4, 3, padding=1), "fc": nn.Linear(36, 5)})


def opencv(prototxt: str, data: bytes):
    return cv2.dnn.readNetFromCaffe(np.frombuffer(prototxt.encode(), np.uint8), np.frombuffer(data, np.uint8))


# Reading


@pytest.mark.parametrize("v1", [False, True])
@pytest.mark.parametrize("form", [{}, {"legacy": True}, {"packed": False}, {"double": True}], ids=str)
def test_every_form_of_a_blob(tmp_path, v1, form):
    layers = small_layers()
    blobs = read_blobs(save(tmp_path, caffemodel(layers, v1, **form)))
    assert list(blobs) == list(layers)
    for name, (_, arrays) in layers.items():
        assert len(blobs[name]) == len(arrays)
        for read, array in zip(blobs[name], arrays, strict=True):
            assert read.dtype == np.float32
            assert read.shape == ((1,) * (4 - array.ndim) + array.shape if "legacy" in form else array.shape)
            np.testing.assert_array_equal(read.ravel(), array.ravel())


@pytest.mark.parametrize("v1", [False, True])
@pytest.mark.parametrize("form", [{}, {"legacy": True}, {"packed": False}], ids=str)
def test_opencv_computes_the_same_from_the_same_bytes(tmp_path, v1, form):
    data = caffemodel(small_layers(), v1, **form)
    network = load(small_network(), save(tmp_path, data))
    image = numbers(1, 2, 3, 3, seed=4)
    reference = opencv(SMALL_PROTOTXT, data)
    reference.setInput(image)
    with torch.no_grad():
        scores = network["fc"](network["rpn_conv/3x3"](torch.from_numpy(image)).flatten(1))
    np.testing.assert_allclose(scores.numpy(), reference.forward(), rtol=1e-4, atol=1e-5)


def test_fields_that_are_not_needed_are_passed_over(tmp_path):
    blob = blob_bytes(np.float32([[1, 2]])) + field(6, struct.pack("<f", 9)) + field(9, struct.pack("<d", 9))
    layer = field(1, b"a") + varint(20 << 3 | 5) + b"1234" + varint(21 << 3 | 1) + b"12345678" + field(7, blob)
    data = field(5, 1) + field(3, b"input") + field(100, layer) + field(1000, 7)
    ((name, (array,)),) = read_blobs(save(tmp_path, data)).items()
    assert name == "a"
    assert array.tolist() == [[1, 2]]


def test_packed_parts_and_single_values_in_one_blob(tmp_path):
    one = varint(5 << 3 | 5) + struct.pack("<f", 3)
    blob = field(7, field(1, 5)) + field(5, struct.pack("<2f", 1, 2)) + one + field(5, struct.pack("<2f", 4, 5))
    (array,) = read_blobs(save(tmp_path, field(100, field(1, b"a") + field(7, blob))))["a"]
    assert array.tolist() == [1, 2, 3, 4, 5]


def test_reading_and_loading_copy_nothing_but_into_the_network(tmp_path):
    path = save(tmp_path, caffemodel({"fc": ("InnerProduct", [numbers(1000, 4000)])}))
    network = nn.ModuleDict({"fc": nn.Linear(4000, 1000, bias=False)})
    tracemalloc.start()
    try:
        load(network, path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 16e6
    assert peak < 1e6
    np.testing.assert_array_equal(network["fc"].weight.detach().numpy(), numbers(1000, 4000))


@pytest.mark.shared
def test_real_file(shared):
    path = shared / "weights" / "MobileNetV2-YOLOv3-Nano-voc.caffemodel"
    blobs = read_blobs(path)
    assert len(blobs) == 247
    assert sum(map(len, blobs.values())) == 346
    assert sum(blob.size for arrays in blobs.values() for blob in arrays) == 769_807
    prototxt = path.with_suffix(".prototxt").read_text()
    convolutions = re.findall(r'name: "([^"]+)"\s+type: "Convolution"', prototxt)
    assert len(convolutions) == prototxt.count('type: "Convolution"') > 50
    reference = opencv(prototxt, path.read_bytes())
    for name in convolutions:
        for read, other in zip(blobs[name], reference.getLayer(name).blobs, strict=True):
            np.testing.assert_array_equal(read.ravel(), other.ravel())


@pytest.mark.parametrize("v1", [False, True])
def test_cut_anywhere(tmp_path, v1):
    layers = {"first": ("Convolution", [numbers(2, 1, 1, 1)]), "last": ("InnerProduct", [numbers(2, 2)])}
    data = caffemodel(layers, v1)
    whole = len(caffemodel({"first": layers["first"]}, v1))  # the only cut that leaves a complete file
    for end in range(len(data)):
        path = save(tmp_path, data[:end])
        if end == whole:
            assert list(read_blobs(path)) == ["first"]
            continue
        with pytest.raises(ValueError, match=re.escape(str(path))) as error:
            read_blobs(path)
        assert ("after layer 'first'" in str(error.value)) == (end > whole)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b'name: "VGG16"\nlayer { name: "conv1" }\n' * 10,
        b"PK\x03\x04" + bytes(range(200)),
        b"<html><body>404 Not Found</body></html>",
        b"\xff" * 100,
        field(1, b"a network without layers"),
        caffemodel({"data": ("Input", [])}),
    ],
    ids=["empty", "png", "prototxt", "zip", "html", "endless-number", "no-layers", "no-weights"],
)
def test_foreign_file(tmp_path, data):
    path = save(tmp_path, data)
    with pytest.raises(
        ValueError, match=rf"^{re.escape(str(path))}: (cannot be read as|there is no layer).*caffemodel"
    ):
        read_blobs(path)


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (field(7, field(1, 3)) + field(5, bytes(8)), r"layer 'fc': 2 values do not fill a blob of the shape \(3,\)"),
        (field(1, 2) + field(2, 2) + field(5, bytes(8)), r"layer 'fc': 2 values .* \(2, 2, 0, 0\)"),
        (field(7, field(1, 3)), r"layer 'fc': 0 values"),
        (field(7, field(1, 1)) + field(5, bytes(6)), "layer 'fc': buffer size"),
    ],
    ids=["few", "legacy", "none", "part-of-a-number"],
)
def test_damaged_blob(tmp_path, blob, message):
    path = save(tmp_path, field(100, field(1, b"fc") + field(7, blob)))
    with pytest.raises(ValueError, match=rf"network.caffemodel: .*{message}.*download it again"):
        read_blobs(path)


def test_two_layers_of_one_name(tmp_path):
    layer = caffemodel({"data": ("Input", []), "fc": ("InnerProduct", [numbers(1, 1)])})
    with pytest.raises(ValueError, match="network.caffemodel.*two layers 'fc'"):
        read_blobs(save(tmp_path, layer + layer))


# Loading


@pytest.mark.parametrize("shape", [(6, 12), (1, 1, 6, 12), (6, 3, 2, 2)])
@pytest.mark.parametrize("layer", [nn.Conv2d(3, 6, 2), nn.Linear(12, 6)], ids=["conv", "linear"])
def test_inner_products_and_convolutions_fit_each_other(tmp_path, shape, layer):
    weight, bias = numbers(6, 12), numbers(6, seed=1)
    legacy = len(shape) == 4
    blobs = [weight.reshape(shape), bias.reshape(1, 1, 1, 6) if legacy else bias]
    load(nn.ModuleDict({"fc6": layer}), save(tmp_path, caffemodel({"fc6": ("InnerProduct", blobs)})))
    for output in range(6):
        assert layer.bias[output].item() == bias[output]
        for channel, y, x in np.ndindex(3, 2, 2):  # flattened in the order (channel, row, column)
            value = layer.weight[output]
            value = value[channel, y, x] if value.ndim == 3 else value[4 * channel + 2 * y + x]
            assert value.item() == weight[output, 4 * channel + 2 * y + x]


def test_a_part_of_a_network_and_other_names(tmp_path):
    path = save(tmp_path, caffemodel(small_layers()))
    network = nn.Module()
    network.trunk = nn.ModuleDict({"rpn": nn.Conv2d(2, 4, 3)})
    network.head = nn.Sequential()
    network.head.add_module("fc", nn.Linear(36, 5))
    load(network, path, rename={"rpn": "rpn_conv/3x3"})
    np.testing.assert_array_equal(network.trunk["rpn"].weight.detach(), numbers(4, 2, 3, 3))
    again = nn.Sequential()
    again.add_module("fc", nn.Linear(36, 5))
    load(again, path, ignore="rpn_.*")
    np.testing.assert_array_equal(again.fc.weight.detach(), network.head.fc.weight.detach())


def without_bias(layers: dict) -> dict:
    kind, (weight, _) = layers["fc"]
    return layers | {"fc": (kind, [weight])}


def transposed(layers: dict) -> dict:
    kind, (weight, bias) = layers["fc"]
    return layers | {"fc": (kind, [weight.T, bias])}


def renamed(layers: dict) -> dict:
    return {"fc8" if name == "fc" else name: layer for name, layer in layers.items()}


def permuted(layers: dict) -> dict:
    kind, (weight, bias) = layers["rpn_conv/3x3"]
    return layers | {"rpn_conv/3x3": (kind, [np.moveaxis(weight, 1, 3), bias])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed, "layer 'fc' is missing or has no weights"),
        (without_bias, "layer 'fc' has 1 blobs instead of 2"),
        (transposed, r"blob 0 of layer 'fc' has the shape \(36, 5\) instead of \(5, 36\)"),
        (permuted, r"blob 0 of layer 'rpn_conv/3x3' has the shape \(4, 3, 3, 2\) instead of \(4, 2, 3, 3\)"),
        (lambda layers: layers | {"scale": ("Scale", [numbers(4)])}, "layer 'scale' has weights but no place"),
    ],
    ids=["missing", "blobs", "transposed", "permuted", "left-over"],
)
def test_file_of_another_network(tmp_path, change, message):
    path = save(tmp_path, caffemodel(change(small_layers())))
    network = small_network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    expected = rf"^{re.escape(str(path))}: {message}.*; give the caffemodel made for ModuleDict$"
    with pytest.raises(ValueError, match=expected):
        load(network, path)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_two_modules_of_one_name(tmp_path):
    network = nn.ModuleDict({"a": small_network(), "b": small_network()})
    with pytest.raises(ValueError, match="two modules of ModuleDict have the layer name 'rpn_conv/3x3'"):
        load(network, save(tmp_path, caffemodel(small_layers())))
