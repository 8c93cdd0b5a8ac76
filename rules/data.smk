"""Images: the miniature is made, VOC and SBD are downloaded and unpacked, image lists are derived.

PRODUCTS  resources/mini/{train,test}/ and resources/VOCdevkit/{VOC2007,VOC2012,SBD}/ in the VOC layout
          resources/VOCdevkit/VOC2011/ImageSets/Segmentation/, the lists alone
          resources/image_sets/{image_set}.txt, derived lists
          resources/checked/{file}, links to resources/downloads/{file}, and members of archives
          results/{experiment}/{image_set}/checked/{kind}.txt
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
        code=code("scripts/data/make_mini.py"),
    script:
        "../scripts/data/make_mini.py"


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
        code=code("scripts/data/make_mini.py"),
    script:
        "../scripts/data/make_mini.py"


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
        code=code("scripts/data/make_mini_objects.py"),
    script:
        "../scripts/data/make_mini_objects.py"


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
    wildcard_constraints:
        file=one_of(paths.downloads(config, extracted=False)),
    localrule: True
    conda:
        "../environment.yml"
    params:
        path=paths.told(config, "resources/downloads/{file}"),
        pins=paths.told(config, "resources/downloads.lock.json"),
        checks=lambda wildcards: jobs.download(config, wildcards.file),
        # follows from `output`, so that another mirror is no reason to run anything again
        urls=lambda wildcards, output: jobs.mirrors(config, wildcards.file),
    script:
        "../scripts/data/download.py"


rule extract:
    """A file of `downloads` that was published inside an archive, checked like a download."""
    input:
        archive=lambda wildcards: paths.archive(config, wildcards.file),
    output:
        "resources/checked/{file}",
    log:
        "logs/extract/{file}.txt",
    wildcard_constraints:
        file=one_of(paths.downloads(config, extracted=True)),
    conda:
        "../environment.yml"
    resources:
        mem_mb=1000,
        runtime=60,
    params:
        member=lambda wildcards: config["downloads"][wildcards.file]["member"],
        pins=paths.told(config, "resources/downloads.lock.json"),
        checks=lambda wildcards: jobs.download(config, wildcards.file),
    script:
        "../scripts/data/extract.py"


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
        members=jobs.voc_members("VOC2007"),
        strip=2,
    script:
        "../scripts/data/unpack_voc.py"


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
        members=jobs.voc_members("VOC2012"),
        strip=2,
    script:
        "../scripts/data/unpack_voc.py"


rule unpack_voc_2011:
    """The lists of segmented images of VOC2011; the images and label maps are in VOC2012 too."""
    input:
        "resources/checked/VOCtrainval_25-May-2011.tar",
    output:
        "resources/VOCdevkit/VOC2011/ImageSets/Segmentation/train.txt",
        "resources/VOCdevkit/VOC2011/ImageSets/Segmentation/val.txt",
    log:
        "logs/unpack_voc/2011.txt",
    conda:
        "../environment.yml"
    resources:
        mem_mb=1000,
        runtime=60,
    params:
        members=["TrainVal/VOCdevkit/VOC2011/ImageSets/Segmentation"],
        strip=3,
    script:
        "../scripts/data/unpack_voc.py"


rule unpack_sbd:
    """SBD, its class annotations as label maps in the layout of VOC."""
    input:
        "resources/checked/benchmark.tgz",
    output:
        "resources/VOCdevkit/SBD/ImageSets/Segmentation/train.txt",
        "resources/VOCdevkit/SBD/ImageSets/Segmentation/val.txt",
    log:
        "logs/unpack_sbd.txt",
    conda:
        "../environment.yml"
    resources:
        mem_mb=1000,
        runtime=60,
    params:
        members=[f"benchmark_RELEASE/dataset/{part}" for part in ("img", "cls", "train.txt", "val.txt")],
    script:
        "../scripts/data/unpack_sbd.py"


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
        code=code("scripts/data/sample_voc.py"),
    script:
        "../scripts/data/sample_voc.py"


rule list_images:
    """A list of images that follows from others."""
    input:
        unpack(lambda wildcards: paths.derived_lists(config)[wildcards.image_set]),
    output:
        "resources/image_sets/{image_set}.txt",
    log:
        "logs/list_images/{image_set}.txt",
    wildcard_constraints:
        image_set=one_of(paths.derived_lists(config)),
    localrule: True
    conda:
        "../environment.yml"
    params:
        expected=lambda wildcards: jobs.derived_list(config, wildcards.image_set),
        spaced=lambda wildcards: jobs.spaced(config, wildcards.image_set),
        code=code("scripts/data/list_images.py"),
    script:
        "../scripts/data/list_images.py"


rule check_images:
    """Read all images of an image set, or all their ground truth of one kind.

    A score needs it, so a damaged file is named in the first minute of a run and not when its shard is attacked.  No
    attack waits for it or is repeated because of it.
    """
    input:
        lists=lambda wildcards: lists_of(wildcards.image_set),
    output:
        "results/{experiment}/{image_set}/checked/{kind}.txt",
    log:
        "logs/check_images/{experiment}/{image_set}/{kind}.txt",
    wildcard_constraints:
        kind=one_of(FILES),
    priority: 2
    conda:
        "../environment.yml"
    resources:
        mem_mb=1000,
        runtime=60,
    params:
        image_set=lambda wildcards: jobs.image_set(config, wildcards.image_set),
        contents=lambda wildcards: jobs.all_contents(config, wildcards.image_set, "image", wildcards.kind),
        given_up=lambda wildcards: plan.given_up(config, wildcards.image_set),
        code=code("scripts/data/check_images.py"),
    script:
        "../scripts/data/check_images.py"
