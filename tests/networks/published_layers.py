"""Names of the layers that have weights in released files, by the prototxt that the file was written with.

Facts of the releases, not of this project's code: `test_published_layers.py` compares them with the prototxts.
"""

VGG16 = [f"conv{block}_{number}" for block, count in enumerate((2, 2, 3, 3, 3), 1) for number in range(1, count + 1)]
FIVE = [f"conv{number}" for number in range(1, 6)]  # CaffeNet and ZF

RESNET50 = ["2a", "2b", "2c", "3a", "3b", "3c", "3d", "4a", "4b", "4c", "4d", "4e", "4f", "5a", "5b", "5c"]
RESNET101 = [
    *("2a", "2b", "2c", "3a", "3b1", "3b2", "3b3", "4a"),
    *(f"4b{number}" for number in range(1, 23)),
    *("5a", "5b", "5c"),
]


def resnet(blocks: list[str]) -> list[str]:
    """Layers of the body of a ResNet: every convolution, its BatchNorm and its Scale."""
    names = ["conv1", "bn_conv1", "scale_conv1"]
    for block in blocks:
        branches = ["1", "2a", "2b", "2c"] if block.endswith("a") else ["2a", "2b", "2c"]
        names += [f"{kind}{block}_branch{branch}" for branch in branches for kind in ("res", "bn", "scale")]
    return names


def at_scales(name: str) -> list[str]:
    """A layer of DeepLab on ResNet-101 and its copies, which Caffe stores under names of their own."""
    if name.startswith("fc1_voc12"):
        return [name] + [name.replace("voc12", f"voc12_res0{scale}") for scale in ("75", "5")]
    return [name] + [f"{name}_res0{scale}" for scale in ("75", "5")]


RPN = ["rpn_cls_score", "rpn_bbox_pred"]
SECOND = ["fc6", "fc7", "cls_score", "bbox_pred"]
FCN = ["fc6", "fc7", "score_fr"]
SKIPS = ["upscore2", "score_pool4", "upscore_pool4", "score_pool3", "upscore8"]
RFCN = ["rpn_conv/3x3", *RPN, "conv_new_1", "rfcn_cls", "rfcn_bbox"]
ASPP = [f"{layer}_{branch}" for branch in (1, 2, 3, 4) for layer in ("fc6", "fc7", "fc8_voc12")]
BRANCHES = [f"fc1_voc12_c{branch}" for branch in range(4)]

FASTER, RFCN_FOLDER = "rbgirshick/py-faster-rcnn models/pascal_voc", "YuwenXiong/py-R-FCN models/pascal_voc"
RELEASES = {
    f"{FASTER}/ZF/faster_rcnn_end2end/train.prototxt": [*FIVE, "rpn_conv/3x3", *RPN, *SECOND],
    f"{FASTER}/ZF/faster_rcnn_alt_opt/stage2_fast_rcnn_train.pt": [*FIVE, "rpn_conv1", *RPN, *SECOND],
    f"{FASTER}/VGG16/faster_rcnn_alt_opt/stage2_fast_rcnn_train.pt": [*VGG16, "rpn_conv/3x3", *RPN, *SECOND],
    f"{RFCN_FOLDER}/ResNet-50/rfcn_end2end/train_agnostic_ohem.prototxt": resnet(RESNET50) + RFCN,
    f"{RFCN_FOLDER}/ResNet-101/rfcn_end2end/train_agnostic_ohem.prototxt": resnet(RESNET101) + RFCN,
    "shelhamer/fcn.berkeleyvision.org voc-fcn8s/train.prototxt": VGG16 + FCN + SKIPS,
    "shelhamer/fcn.berkeleyvision.org voc-fcn32s/train.prototxt": VGG16 + FCN + ["upscore"],
    "shelhamer/fcn.berkeleyvision.org voc-fcn-alexnet/train.prototxt": FIVE + FCN + ["upscore"],
    "xmojiao/deeplab_v2 voc2012/config/deeplab_largeFOV/train.prototxt": VGG16 + ASPP,
    "cihangxie/DAG prototxt/fcn_8s_deploy.prototxt": VGG16 + FCN + SKIPS,
    "cihangxie/DAG prototxt/fcn_alexnet_deploy.prototxt": FIVE + FCN + ["upscore"],
    "isht7/pytorch-deeplab-resnet data/test_513.prototxt": [
        copy for name in resnet(RESNET101) + BRANCHES for copy in at_scales(name)
    ],
}
