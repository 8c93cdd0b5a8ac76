"""Images: the miniature is made, VOC is downloaded and unpacked.

PRODUCTS  resources/mini/{train,test}/ and resources/VOCdevkit/{VOC2007,VOC2012}/ in the VOC layout
"""


rule make_mini_train:
    """Training images of the miniature."""
    output:
        "resources/mini/train/ImageSets/Main/07.txt",
        "resources/mini/train/ImageSets/Main/0712.txt",
        "resources/mini/train/ImageSets/Segmentation/original.txt",
        "resources/mini/train/ImageSets/Segmentation/starred.txt",
    log:
        "logs/make_mini/train.txt",
    params:
        root="resources/mini/train",
        settings=config["mini"]["train"],
        code=code("dag.mini"),
    script:
        "../scripts/make_mini.py"


rule make_mini_test:
    """Test images of the miniature, from a seed of their own."""
    output:
        "resources/mini/test/ImageSets/Main/test.txt",
    log:
        "logs/make_mini/test.txt",
    params:
        root="resources/mini/test",
        settings=config["mini"]["test"],
        code=code("dag.mini"),
    script:
        "../scripts/make_mini.py"


rule make_mini_objects:
    """Single objects that the bodies are pretrained on: the ImageNet of the miniature."""
    output:
        "resources/mini/objects.npz",
    log:
        "logs/make_mini_objects.txt",
    params:
        settings=config["mini"]["objects"],
        code=code("dag.mini"),
    script:
        "../scripts/make_mini_objects.py"


rule download:
    """Any file of `downloads`: mirrors in order, resumed, checked, renamed into place."""
    output:
        "resources/downloads/{file}",
    log:
        "logs/download/{file}.txt",
    params:
        entry=lambda wildcards: config["downloads"][wildcards.file],
        pins="resources/downloads.lock.json",
    script:
        "../scripts/download.py"
