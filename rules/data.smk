"""Images: the miniature is made, VOC is downloaded and unpacked.

PRODUCTS  resources/mini/{train,test}/ and resources/VOCdevkit/{VOC2007,VOC2012}/ in the VOC layout
          resources/checked/{file}, links to resources/downloads/{file}
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
    conda:
        "../environment.yml"
    params:
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
    conda:
        "../environment.yml"
    params:
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
    conda:
        "../environment.yml"
    params:
        settings=config["mini"]["objects"],
        code=code("dag.mini"),
    script:
        "../scripts/make_mini_objects.py"


rule download:
    """Any file of `downloads`: mirrors in order, resumed, checked.

    The file itself, resources/downloads/{file}, is not declared: Snakemake deletes what a job declares
    before it runs and takes what it finds there unseen.  So a file put there by hand is checked too, and
    none is fetched twice.  What jobs read is a link to the checked file.
    """
    output:
        "resources/checked/{file}",
    log:
        "logs/download/{file}.txt",
    localrule: True
    conda:
        "../environment.yml"
    params:
        path="resources/downloads/{file}",
        pins="resources/downloads.lock.json",
        checks=checks,
        urls=mirrors,
    script:
        "../scripts/download.py"


rule unpack_voc_2007:
    """VOC2007 from its two archives, laid over each other."""
    input:
        "resources/checked/VOCtrainval_06-Nov-2007.tar",
        "resources/checked/VOCtest_06-Nov-2007.tar",
    output:
        "resources/VOCdevkit/VOC2007/ImageSets/Main/trainval.txt",
        "resources/VOCdevkit/VOC2007/ImageSets/Main/test.txt",
    log:
        "logs/unpack_voc/2007.txt",
    conda:
        "../environment.yml"
    resources:
        mem_mb=1000,
        runtime=60,
    params:
        members=voc_members("VOC2007"),
    script:
        "../scripts/unpack_voc.py"


rule unpack_voc_2012:
    """VOC2012 without its instance masks, which nothing here reads."""
    input:
        "resources/checked/VOCtrainval_11-May-2012.tar",
    output:
        "resources/VOCdevkit/VOC2012/ImageSets/Main/trainval.txt",
        "resources/VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt",
        "resources/VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt",
    log:
        "logs/unpack_voc/2012.txt",
    conda:
        "../environment.yml"
    resources:
        mem_mb=1000,
        runtime=60,
    params:
        members=voc_members("VOC2012"),
    script:
        "../scripts/unpack_voc.py"


rule sample_voc:
    """Image lists of the pocket experiment: images that its networks have not been trained on."""
    input:
        val="resources/VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt",
        test="resources/VOCdevkit/VOC2007/ImageSets/Main/test.txt",
    output:
        segmentation="resources/VOCdevkit/VOC2012/ImageSets/Segmentation/sample.txt",
        detection="resources/VOCdevkit/VOC2012/ImageSets/Main/sample.txt",
        detection_2007="resources/VOCdevkit/VOC2007/ImageSets/Main/sample.txt",
    log:
        "logs/sample_voc.txt",
    localrule: True
    conda:
        "../environment.yml"
    params:
        code=code("dag.voc"),
    script:
        "../scripts/sample_voc.py"
