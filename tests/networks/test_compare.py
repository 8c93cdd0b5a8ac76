"""The checking command against OpenCV, blob by blob, on the prototxts that the tests of the networks write."""

import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import test_caffe_detection as detection
import test_caffe_segmentation as segmentation
import torch
import yaml
from PIL import Image

from dag.networks import building, interface
from dag.networks.caffe import compare

torch.set_num_threads(1)
ROOT = Path(__file__).parents[2]


def close(ours: np.ndarray, reference: np.ndarray, name: str) -> None:
    assert ours.shape == reference.shape, name
    np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-4 * np.abs(reference).max(), err_msg=name)


def writers(text: str) -> dict[str, str]:
    """Blob -> the last layer that writes it, in place or not: what pycaffe's net.blobs holds after the pass."""
    return {top: name for name, top in re.findall(r'^layer \{ name: "([^"]+)".*? top: "([^"]+)"', text, re.MULTILINE)}


def weighted(text: str) -> set[str]:
    """Names of the convolutions, deconvolutions and inner products."""
    return set(re.findall(r'^layer \{ name: "([^"]+)" type: "(?:Convolution|Deconvolution|InnerProduct)"', text, re.M))


# Segmentation


@segmentation.every_network
def test_every_blob_of_a_segmentation_network_equals_opencv(tmp_path, name):
    factory, prototxt, _, mean = segmentation.NETWORKS[name]
    net = prototxt(41, 64)
    path = net.file(tmp_path)
    image = segmentation.random_image(41, 64)
    network = factory(caffemodel=path).eval().requires_grad_(False)
    found = compare.blobs(network, torch.from_numpy(image)[None])

    inputs = image[::-1] - np.float32(mean)[:, None, None]
    if not name.startswith("fcn"):
        inputs = np.pad(inputs, [(0, 0), (0, segmentation.FRAME - 41), (0, segmentation.FRAME - 64)])
    np.testing.assert_array_equal(found["data"], inputs[None])
    text = "\n".join(net.text)
    assert weighted(text) <= found.keys()
    # The prototxts of the tests call the last layer of every network so.
    renamed = {"fc8_interp": "score", "fc1_interp": "score"}
    layers = {blob: writers(text)[renamed.get(blob, blob)] for blob in found if blob != "data"}
    for blob, reference in zip(layers, net.forward(path, inputs[None], *layers.values()), strict=True):
        close(found[blob], reference, blob)
    assert found["conv1" if "conv1" in found else "conv1_1"].min() == 0  # after ReLU


@segmentation.every_network
def test_data_of_caffe_instead_of_an_image(name):
    network = segmentation.NETWORKS[name][0]().eval().requires_grad_(False)
    found = compare.blobs(network, torch.from_numpy(segmentation.random_image(33, 47))[None])
    again = compare.blobs(network, data=torch.from_numpy(found["data"]))
    assert list(found) == list(again)
    for blob, array in found.items():
        close(again[blob], array, blob)


# Detection


def faster_rcnn_text(body: str, rpn: str, height: int, width: int) -> str:
    """The whole network: OpenCV's Proposal layer drops no small boxes."""
    widths = detection.NARROW[body]
    trunk, maps, last = detection.TEXTS[body](widths)
    first, separator, second = detection.heads_text(widths, rpn, maps, last).partition('layer { name: "rpn_bbox_pred"')
    line, _, second = (separator + second).partition("\n")
    layer = detection.layer
    anchors = "".join(f"ratio: {ratio} " for ratio in (0.5, 1, 2)) + "".join(f"scale: {size} " for size in (8, 16, 32))
    middle = [
        layer("Reshape", "rpn_cls_score_reshape", "rpn_cls_score",
              parameters="reshape_param { shape { dim: 0 dim: 2 dim: -1 dim: 0 } }"),
        layer("Softmax", "rpn_cls_prob", "rpn_cls_score_reshape"),
        layer("Reshape", "rpn_cls_prob_reshape", "rpn_cls_prob",
              parameters="reshape_param { shape { dim: 0 dim: 18 dim: -1 dim: 0 } }"),
        layer("Proposal", "proposal", "rpn_cls_prob_reshape rpn_bbox_pred im_info", "rois",
              f"proposal_param {{ feat_stride: 16 base_size: 16 min_size: 16 {anchors} pre_nms_topn: 6000 "
              "post_nms_topn: 40 nms_thresh: 0.7 }"),
    ]  # fmt: skip
    text = f'input: "data" input_shape {{ dim: 1 dim: 3 dim: {height} dim: {width} }}\n'
    text += 'input: "im_info" input_shape { dim: 1 dim: 3 }\n' + trunk + first + line + "\n" + "".join(middle) + second
    return text + layer("Softmax", "cls_prob", "cls_score")


@pytest.mark.parametrize("name", ["zf", "vgg16", "resnet50", "resnet101"])
def test_every_blob_of_a_detector_equals_opencv(tmp_path, name):
    """One pass from the image to the scores of the network's own proposals."""
    rpn = "rpn_conv1" if name == "zf" else "rpn_conv/3x3"
    layers = detection.blobs(detection.make(name))
    layers["rpn_cls_score"] = [10 * blob for blob in layers["rpn_cls_score"]]  # no two proposals are nearly as good
    layers[rpn] = layers.pop("rpn_conv/3x3")
    path = detection.write(tmp_path / "weights.caffemodel", layers)
    network = detection.make(name, {"caffemodel": path}, smallest=0, short=160, long=400)
    network.proposals = 40
    image = detection.images(1, 100, 130)
    found = compare.blobs(network, image, names={"rpn_conv/3x3": rpn})

    prepared = image[0].numpy()[::-1].transpose(1, 2, 0) - detection.MEAN
    prepared = cv2.resize(prepared, None, fx=1.6, fy=1.6, interpolation=cv2.INTER_LINEAR).transpose(2, 0, 1)[None]
    np.testing.assert_allclose(found["data"], prepared, atol=0.02)
    np.testing.assert_allclose(found["im_info"], [[160, 208, 1.6]])
    text = faster_rcnn_text(name, rpn, 160, 208)
    assert weighted(text) <= found.keys()
    (tmp_path / "net.prototxt").write_text(text)
    reference = cv2.dnn.readNetFromCaffe(str(tmp_path / "net.prototxt"), str(path))
    reference.setInput(found["data"], "data")
    reference.setInput(found["im_info"], "im_info")
    blobs = [blob for blob in found if blob in writers(text)]
    assert found.keys() - blobs == {"data", "im_info"} | ({"bbox_pred_pre"} if "resnet" in name else set())
    expected = dict(zip(blobs, reference.forward([writers(text)[blob] for blob in blobs]), strict=True))
    count = len(found["rois"])
    kept = (expected["rois"][:, 3:] != 0).any(1)  # OpenCV pads with zeros
    assert 20 < count == kept.sum()
    for blob in blobs:
        array = expected[blob]
        if len(array) == len(kept):
            array = array[kept]
        if blob in ("bbox_pred", "cls_prob"):  # Caffe's prototxt of R-FCN takes the shape 1 x 1 off, ours does not
            array = array.reshape(count, -1)
        close(found[blob], array, blob)


@pytest.mark.parametrize("name", detection.KINDS)
def test_data_of_caffe_instead_of_an_image_for_a_detector(name):
    network = detection.make(name)
    found = compare.blobs(network, detection.images(1, 60, 70))
    again = compare.blobs(network, data=torch.from_numpy(found["data"]), scale=float(found["im_info"][0, 2]))
    assert list(found) == list(again)
    for blob, array in found.items():
        close(again[blob], array, blob)
    # Without a scale the data are the image: fewer small proposals are dropped.
    bare = compare.blobs(network, data=torch.from_numpy(found["data"]))
    np.testing.assert_array_equal(bare["conv1" if "conv1" in bare else "conv1_1"], found[list(found)[1]])
    assert bare["im_info"].tolist() == [[96, 112, 1]]
    assert len(bare["rois"]) >= len(found["rois"])


def test_names_of_the_matlab_release(tmp_path):
    names = {"rpn_conv/3x3": "conv_proposal1", "rpn_cls_score": "proposal_cls_score",
             "rpn_bbox_pred": "proposal_bbox_pred"}  # fmt: skip
    found = compare.blobs(detection.make("zf-matlab"), detection.images(1, 60, 70), names=names)
    assert found.keys() >= {*names.values(), "proposal_cls_prob"}
    assert not found.keys() & {*names, "rpn_cls_prob", "rpn/output"}
    assert (found["rois"] == found["rois"].round()).all()


# Networks that were not released for Caffe


def test_names_and_values_of_other_networks():
    network = building.build("dag.networks.mini.fcn:fcn", {"body": "vgg", "skip": True, "labels": [0, 1, 2]})
    image = detection.images(1, 40, 48)
    found = compare.blobs(network, image)
    torch.testing.assert_close(torch.from_numpy(found["score"]), network(image))
    assert {"trunk", "head", "score", "skip"} == {blob.split(".")[0] for blob in found} - {"data", "body"}
    assert found["head.0.0"].min() == 0  # its ReLU is computed in place

    network = building.build("dag.networks.mini.faster_rcnn:faster_rcnn", {"body": "zf", "labels": [0, 1, 2]})
    found = compare.blobs(network, image)
    (proposals,) = network.propose(network.features(image), nms=0.7, limit=150, candidates=600)
    np.testing.assert_array_equal(found["rois"][:, 1:], proposals.boxes)
    np.testing.assert_allclose(found["cls_prob"].sum(1), 1, atol=1e-6)
    with pytest.raises(ValueError, match="FasterRCNN was not released for Caffe; give an image"):
        compare.blobs(network, data=image)


class Twice(interface.Detector):
    """A layer that is passed twice; nothing is proposed."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 3, 1)

    def features(self, images):
        return self.layer(self.layer(images))


def test_a_module_that_is_passed_twice():
    network, image = Twice(), detection.images(1, 4, 5)
    found = compare.blobs(network, image)
    assert list(found) == ["data", "layer", "data.2", "layer.2"]
    np.testing.assert_array_equal(found["data.2"], found["layer"])
    np.testing.assert_array_equal(found["layer.2"], network.features(image).detach())
    assert not network.layer._forward_hooks


# The command line


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """A configuration of narrow networks, their weights, an image."""
    folder = tmp_path_factory.mktemp("check")
    fcn = segmentation.fcn_alexnet_prototxt(41, 64).file(folder)
    whole = detection.blobs(detection.make("zf"))
    zf = detection.write(folder / "zf.caffemodel", whole)
    names = {"rpn_conv/3x3": "conv_proposal1", "rpn_cls_score": "proposal_cls_score",
             "rpn_bbox_pred": "proposal_bbox_pred"}  # fmt: skip
    trunk = {name: blobs for name, blobs in whole.items() if name.startswith("conv")}
    proposal = trunk | {other: whole[name] for name, other in names.items()}
    detector = trunk | {name: whole[name] for name in ("fc6", "fc7", "cls_score", "bbox_pred")}
    arguments = {"body": "zf", "labels": list(detection.LABELS), "short": 96, "long": 144,
                 "widths": detection.NARROW["zf"]}  # fmt: skip
    entries = {
        "fcn": {
            "architecture": "dag.networks.caffe.fcn:fcn_alexnet",
            "arguments": {"labels": list(segmentation.LABELS), "widths": segmentation.NARROW_ALEXNET},
        },
        "fr": {"architecture": detection.FASTER, "arguments": arguments},
        "fr-matlab": {"architecture": detection.FASTER, "arguments": arguments | {"convention": "matlab"}},
        "mini": {"architecture": "dag.networks.mini.fcn:fcn", "arguments": {"body": "alex", "labels": [0, 1]}},
    }
    entries["rounded"] = {"of": "fcn", "defence": "rounding"}
    (folder / "networks.yaml").write_text(yaml.safe_dump({"networks": entries}))
    image = np.random.default_rng(0).integers(0, 256, (60, 70, 3), dtype=np.uint8)
    Image.fromarray(image).save(folder / "image.png")
    np.save(folder / "data.npy", np.random.default_rng(1).normal(0, 60, (1, 3, 96, 112)).astype(np.float32))
    return {
        "config": folder / "networks.yaml",
        "image": folder / "image.png",
        "data": folder / "data.npy",
        "fcn": fcn,
        "zf": zf,
        "proposal": detection.write(folder / "proposal_final", proposal),
        "detection": detection.write(folder / "detection_final", detector),
    }


def run(files, *arguments) -> int:
    return compare.main(["--networks", str(files["config"]), *map(str, arguments)])


def test_command_line_of_a_segmentation_network(files, tmp_path, capsys):
    output = tmp_path / "blobs.npz"
    assert run(files, "fcn", "--weights", files["fcn"], "--image", files["image"], "--output", output) == 0
    network = building.build(
        "dag.networks.caffe.fcn:fcn_alexnet",
        {"labels": segmentation.LABELS, "widths": segmentation.NARROW_ALEXNET},
        {"caffemodel": files["fcn"]},
    )
    image = torch.from_numpy(np.asarray(Image.open(files["image"])).transpose(2, 0, 1).astype(np.float32))[None]
    expected = compare.blobs(network, image)
    with np.load(output) as stored:
        assert list(stored) == list(expected)
        assert all(stored[blob].dtype == np.float32 for blob in stored)
        for blob, array in expected.items():
            np.testing.assert_array_equal(stored[blob], array)
    assert list(tmp_path.iterdir()) == [output]

    head, *rows, last = capsys.readouterr().out.splitlines()
    assert head.split() == ["blob", "shape", "min", "mean", "max"]
    assert [row.split()[0] for row in rows] == list(expected)
    row = next(row for row in rows if row.startswith("conv3 "))
    score = expected["conv3"]
    assert row.split()[1:-3] == " x ".join(map(str, score.shape)).split()
    np.testing.assert_allclose([float(value) for value in row.split()[-3:]], [score.min(), score.mean(), score.max()],
                               rtol=1e-4)  # fmt: skip
    label, share = re.match(r"label map: (\w+) ([\d.]+)%", last).groups()
    labels = network.label_map(image)
    (most, count) = max(zip(*np.unique(labels, return_counts=True), strict=True), key=lambda one: one[1])
    assert label == {0: "background", 3: "bird", 15: "person", 20: "tvmonitor"}[most]
    assert float(share) == pytest.approx(100 * count / labels.numel(), abs=0.01)


def test_command_line_of_a_detector(files, tmp_path, capsys):
    output = tmp_path / "blobs.npz"
    command = ("fr", "--weights", files["zf"], "--image", files["image"])
    assert run(files, *command, "--output", output) == 0
    printed = capsys.readouterr().out
    arguments = yaml.safe_load(files["config"].read_text())["networks"]["fr"]["arguments"]
    network = building.build(detection.FASTER, arguments, {"caffemodel": files["zf"]})
    image = torch.from_numpy(np.asarray(Image.open(files["image"])).transpose(2, 0, 1).astype(np.float32))[None]
    (found,) = network.detect(image)
    assert f"{len(found.scores)} detections" in printed and len(found.scores) > 0
    assert f"{found.scores[0]:.4f}" in printed and f"{found.boxes[0, 3]:.2f}" in printed
    with np.load(output) as stored:
        assert "rpn/output" in stored
        normal = stored["rois"]
    # The settings of the proposals.
    assert run(files, *command, "--output", output, "--nms", "0.9", "--proposals", "7", "--min-size", "0",
               "--blobs", "^rois$") == 0  # fmt: skip
    network.smallest = 0
    (dense,) = network.propose(network.features(image), nms=0.9, limit=7, candidates=6000)
    with np.load(output) as stored:
        assert list(stored) == ["rois"] and len(stored["rois"]) == 7 != len(normal)
        np.testing.assert_allclose(stored["rois"][:, 1:], dense.boxes * 1.6, atol=1e-3)


def test_command_line_with_the_halves_of_the_matlab_release_and_data(files, tmp_path):
    """As a process of its own; the output must not depend on where it is started."""
    output = tmp_path / "blobs.npz"
    command = [sys.executable, "-m", "dag.networks.caffe.compare", "fr-matlab", "--networks", files["config"],
               "--weights", files["detection"], "--weights", f"proposal_caffemodel={files['proposal']}",
               "--data", files["data"], "--scale", "2", "--output", output]  # fmt: skip
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "detections" not in done.stdout
    with np.load(output) as stored:
        np.testing.assert_array_equal(stored["data"], np.load(files["data"]))
        assert stored["im_info"].tolist() == [[96, 112, 2]]
        assert "conv_proposal1" in stored and "proposal_cls_prob" in stored


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "weights", "says"),
    [
        ("yolo-nano", {"cfg": "MobileNetV2-YOLOv3-Nano-voc.cfg", "weights": "MobileNetV2-YOLOv3-Nano-voc.weights"},
         "detections"),
        ("dl-mnv2", {"tflite": "deeplabv3_mnv2_pascal_quant.tflite"}, "label map: person"),
    ],
)  # fmt: skip
def test_real_networks_of_the_configuration(shared, capsys, name, weights, says):
    roles = [text for role, file in weights.items() for text in ("--weights", f"{role}={shared / 'weights' / file}")]
    image = shared / "voc" / "VOC2007" / "JPEGImages" / "000001.jpg"
    assert compare.main([name, *roles, "--image", str(image)]) == 0
    assert says in capsys.readouterr().out


# Bad input


def test_names_of_the_configuration_are_known():
    assert compare.NETWORKS.is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("resnet --weights {fcn} --image {image}", "network 'resnet' is not in .*networks.yaml; known are fcn, fr,"),
        ("rounded --weights {fcn} --image {image}", "network 'rounded' in .*yaml is fcn behind a defence; compare fcn"),
        ("fcn --weights {fcn}", "give either --image or --data"),
        ("fcn --weights {fcn} --image {image} --data {data}", "give either --image or --data"),
        ("fcn --image {image}", "give the weights that Caffe ran with"),
        ("fcn --weights nothing.caffemodel --image {image}", "nothing.caffemodel: no such weight file .caffemodel."),
        ("fcn --weights {fcn} --weights {zf} --image {image}", "two files for the role 'caffemodel'"),
        ("fcn --weights {zf} --image {image}", "zf.caffemodel: "),
        ("fcn --weights tflite={fcn} --image {image}", "unexpected keyword argument 'tflite'"),
        ("fcn --weights {fcn} --image nothing.jpg", "nothing.jpg: no such file"),
        ("fcn --weights {fcn} --image {fcn}", "network.caffemodel: damaged image"),
        ("fcn --weights {fcn} --data nothing.npy", "nothing.npy: cannot be read as an array"),
        ("fcn --weights {fcn} --data {image}", "image.png: cannot be read as an array"),
        ("fcn --weights {fcn} --data {grey}", "grey.npy: the array has the shape .1, 1, 4, 4. instead of .1, 3,"),
        ("fcn --weights {fcn} --data {nan}", "nan.npy: the array has values that are not finite"),
        ("fcn --weights {fcn} --data {text}", "text.npy: does not hold one array of numbers"),
        ("fcn --weights {fcn} --image {image} --scale 2", "--scale is a number above 0 that goes with --data"),
        ("fr --weights {zf} --data {data} --scale 0", "--scale is a number above 0"),
        ("fcn --weights {fcn} --image {image} --nms 0.7", "--nms: fcn has no such setting"),
        ("fr --weights {zf} --image {image} --min-size -1", "--min-size: -1.0 is below 0"),
        ("fcn --weights {fcn} --image {image} --blobs (", "--blobs '.': not a regular expression"),
        ("fcn --weights {fcn} --image {image} --blobs xyz", "--blobs 'xyz': no blob has such a name"),
        (
            "fcn --weights {fcn} --image {image} --output {image}/blobs.npz",
            "blobs.npz: name a file in a folder that exists",
        ),
        ("fcn --weights {fcn} --image {image} --networks {image}", "image.png: cannot be read as a configuration"),
        ("fcn --weights {fcn} --image {image} --networks {data}.yaml", "npy.yaml: cannot be read as a configuration"),
        ("mini --weights state_dict={fcn} --image {image}", "network.caffemodel: cannot be loaded as weights of FCN"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_1(files, tmp_path, capsys, arguments, message):
    arrays = {"grey": np.zeros((1, 1, 4, 4)), "nan": np.full((1, 3, 4, 4), np.nan), "text": np.array(["a"])}
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    paths = files | {name: tmp_path / f"{name}.npy" for name in arrays}
    assert run(files, *(part.format(**paths) for part in arguments.split())) == 1
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.count("\n") == 1


@pytest.mark.parametrize("given", [{}, {"images": torch.zeros(1, 3, 4, 4), "data": torch.zeros(1, 3, 4, 4)}])
def test_images_or_data(given):
    with pytest.raises(ValueError, match="give either images or data"):
        compare.blobs(Twice(), **given)
