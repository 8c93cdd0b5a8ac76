"""Image sets in every format: the same truth whatever it is written in, and one sentence for what cannot be used."""

import json

import numpy as np
import pytest
from PIL import Image

from dag.data import image_files, readers
from dag.data.classes import VOID, ClassList
from dag.data.image_sets import ImageError

CLASSES = {"names": ["background", "cat", "dog"], "background": "background", "void": [255]}
SIZE = (6, 8)  # height and width
# by hand: a cat in rows 1..3 and columns 2..5, a dog in row 5, a crowd of dogs in column 7
MAP = np.zeros(SIZE, np.uint8)
MAP[1:4, 2:6], MAP[5, :], MAP[:, 7] = 1, 2, VOID
MAP[5, 7] = 2


def annotations() -> dict:
    column = {"size": [6, 8], "counts": [42, 6]}  # runs go down the columns
    return {
        "categories": [{"id": 7, "name": "Dog"}, {"id": 3, "name": "cat"}, {"id": 9, "name": "unused"}],
        "images": [{"id": 5, "file_name": "a.png", "height": 6, "width": 8}, {"id": 1, "file_name": "b.JPG"}],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 3, "bbox": [2, 1, 4, 3],
             "segmentation": [[2, 1, 6, 1, 6, 4, 2, 4]]},
            {"id": 2, "image_id": 5, "category_id": 7, "segmentation": {"size": [6, 8], "counts": [5, *[1, 5] * 7, 1]}},
            {"id": 3, "image_id": 5, "category_id": 7, "iscrowd": 1, "bbox": [7, 0, 1, 6], "segmentation": column},
        ],
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images/a.png")
    Image.fromarray(pixels).save(tmp_path / "images/b.JPG", quality=100)
    (tmp_path / "masks").mkdir()
    Image.fromarray(MAP).save(tmp_path / "masks/a.png")
    Image.fromarray(MAP).save(tmp_path / "masks/b.PNG")
    return tmp_path


def reader(folder, kind: str, content: dict | None = None, classes: dict = CLASSES, **part):
    part = {"root": str(folder / "images"), "list": str(folder / "images")} | part
    if kind == "coco":
        part["list"] = str(folder / "annotations.json")
        (folder / "annotations.json").write_text(json.dumps(annotations() if content is None else content))
    if kind == "masks":
        part["masks"] = str(folder / "masks")
    return readers.reader_of(
        {"name": "mine", "format": kind, "classes": classes, "parts": [part], "size": 2, "sha256": None}
    )


@pytest.mark.parametrize("kind", ["coco", "masks", "images"])
def test_images_are_found_whatever_their_ending(folder, kind):
    images = reader(folder, kind).images()
    assert images == [(folder / "images", "a"), (folder / "images", "b")]
    for image in images:
        assert reader(folder, kind).size(image) == SIZE and reader(folder, kind).image(image).shape == (3, *SIZE)
    assert [path.name for path in reader(folder, kind).files("image", images[1])] == ["b.JPG"]


def test_a_name_with_a_blank_is_refused(folder):
    (folder / "images/a.png").rename(folder / "images/a b.png")
    with pytest.raises(ValueError, match="image set mine: 'a b' is not an image id, .* rename the image file"):
        reader(folder, "images").images()


def test_a_list_chooses_images(folder):
    (folder / "some.txt").write_text("b\n")
    chosen = reader(folder, "images", list=str(folder / "some.txt"))
    assert list(map(chosen.ids, chosen.parts)) == [["b"]]


@pytest.mark.parametrize("kind", ["coco", "masks"])
def test_label_maps_are_the_same_in_every_format(folder, kind):
    mine = reader(folder, kind)
    assert np.array_equal(mine.truth("segmentation", mine.images()[0]), MAP)
    assert mine.has("segmentation", mine.images()[0]) and mine.annotated


def test_objects_of_coco(folder):
    """COCO's edges are continuous, ours are pixels: a box of width 4 at 2 ends with pixel 5."""
    mine = reader(folder, "coco")
    found = mine.truth("detection", mine.images()[0])
    assert found.boxes.tolist() == [[2, 1, 5, 3], [0, 5, 7, 5], [7, 0, 7, 5]]
    assert found.labels.tolist() == [1, 2, 2] and found.difficult.tolist() == [False, False, True]
    assert mine.truth("detection", mine.images()[1]).boxes.shape == (0, 4)


def test_images_alone_have_no_truth(folder):
    mine = reader(folder, "images")
    assert not mine.annotated and mine.truth("detection", mine.images()[0]) is None
    assert mine.files("segmentation", mine.images()[0]) == []


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools and NumPy 2
def test_polygons_and_compressed_runs_are_those_of_pycocotools(folder):
    from pycocotools import mask

    content, polygon = annotations(), [1.2, 0.6, 6.4, 2.3, 3.1, 5.2]
    plain = content["annotations"][1]
    runs = mask.encode(np.asfortranarray((MAP == 1).astype(np.uint8)))
    content["annotations"] = [
        plain | {"id": 1, "segmentation": [polygon]},
        plain | {"id": 2, "image_id": 1, "segmentation": {"size": [6, 8], "counts": runs["counts"].decode()}},
    ]
    mine = reader(folder, "coco", content)
    drawn = mask.decode(mask.merge(mask.frPyObjects([polygon], *SIZE)))
    assert np.array_equal(mine.truth("segmentation", mine.images()[0]), 2 * drawn)
    assert np.array_equal(mine.truth("segmentation", mine.images()[1]), 2 * (MAP == 1))


def test_pixels_of_two_classes_are_void_and_without_background_all_others(folder):
    content = annotations()
    content["annotations"][1]["segmentation"] = [[0, 0, 3, 0, 3, 6, 0, 6]]  # columns 0..2
    classes = {"names": ["dog", "cat"]}
    found = reader(folder, "coco", content, classes).truth("segmentation", (folder / "images", "a"))
    expected = np.full(SIZE, VOID)
    expected[:, :3], expected[1:4, 3:6], expected[1:4, 2] = 0, 1, VOID
    assert np.array_equal(found, expected)


def test_coloured_label_maps_are_read_by_the_colours_of_the_classes(folder):
    classes = CLASSES | {"colours": ["#000000", "#0a0b0c", "#ff0000"], "void": [255, "#808080"]}
    colours = np.zeros((256, 3), np.uint8)
    colours[[1, 2, VOID]] = (10, 11, 12), (255, 0, 0), (128, 128, 128)
    Image.fromarray(colours[MAP]).save(folder / "masks/a.png")
    palette = Image.fromarray(np.where(MAP == 1, 77, MAP).astype(np.uint8))
    shuffled = colours.copy()
    shuffled[77] = colours[1]
    palette.putpalette(shuffled.tobytes())
    palette.save(folder / "masks/b.PNG")
    mine = reader(folder, "masks", classes=classes)
    for image in mine.images():
        assert np.array_equal(mine.truth("segmentation", image), MAP)


def test_label_maps_with_other_numbers(folder):
    classes = {"names": {"cat": 11, "dog": 33}, "void": [0]}
    Image.fromarray(np.select([MAP == 1, MAP == 2], [11, 33], 0).astype(np.uint8)).save(folder / "masks/a.png")
    found = reader(folder, "masks", classes=classes).truth("segmentation", (folder / "images", "a"))
    assert np.array_equal(found, np.select([MAP == 1, MAP == 2], [0, 1], VOID))


def broken(change) -> dict:
    content = annotations()
    change(content)
    return content


def annotation(number: int, **fields):
    return lambda content: content["annotations"][number].update(fields)


BROKEN = {
    "category without name": (lambda c: c["categories"][0].pop("name"), "category 7 has no name"),
    "category twice": (lambda c: c["categories"][1].update(id=7), "the id 7 is given to two of kind category"),
    "image twice": (lambda c: c["images"][1].update(id=5), "the id 5 is given to two of kind image"),
    "annotation twice": (annotation(1, id=1), "the id 1 is given to two of kind annotation"),
    "file twice": (lambda c: c["images"][1].update(file_name="x/a.jpg"), "two images are called a, the second is 1"),
    "no file name": (lambda c: c["images"][1].pop("file_name"), "image 1 has no file_name"),
    "no id": (lambda c: c["annotations"][2].pop("id"), "annotation number 3 has no id"),
    "no categories": (lambda c: c.pop("categories"), "not annotations in COCO's form \\(there is no 'categories'\\)"),
    "image of nothing": (annotation(0, image_id=8), "annotation 1 is of image 8, which is not there"),
    "category of nothing": (annotation(0, category_id=8), "annotation 1 is of category 8, which is not there"),
}


@pytest.mark.parametrize("mistake", BROKEN)
def test_annotations_that_contradict_themselves(folder, mistake):
    change, sentence = BROKEN[mistake]
    with pytest.raises(ValueError, match=f"annotations.json: {sentence}"):
        reader(folder, "coco", broken(change)).images()


WRONG = {
    "label of no class": (annotation(0, category_id=9), "annotation 1 is a 'unused', which is none of the classes"),
    "another size": (lambda c: c["images"][0].update(width=9), "image a.png is 9 x 6 there and 8 x 6 in"),
    "runs of another size": (
        annotation(1, segmentation={"size": [8, 6], "counts": [48]}), r"annotation 2 has run lengths of size \[8, 6\]",
    ),
    "too many runs": (
        annotation(1, segmentation={"size": [6, 8], "counts": [40, 9]}), "annotation 2 has run lengths of 49 pixels in",
    ),
    "too many compressed runs": (
        annotation(1, segmentation={"size": [6, 8], "counts": "h01"}), "annotation 2 has run lengths of .* pixels in",
    ),
    "no counts": (annotation(1, segmentation={"size": [6, 8]}), "annotation 2 has run lengths without counts"),
    "polygon outside": (
        annotation(0, segmentation=[[2, 1, 60, 1, 6, 4]]), "annotation 1 has a polygon outside the 8 x 6 image",
    ),
    "half a point": (annotation(0, segmentation=[[2, 1, 6, 1, 6, 4, 2]]), "annotation 1 has a polygon of 7 numbers"),
    "no polygon": (annotation(0, segmentation=[[2, 1]]), "annotation 1 has no polygon of three points"),
    "a box alone": (annotation(0, segmentation=[]), "annotation 1 is a box without segmentation"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", WRONG)
def test_an_annotation_that_cannot_be_used_is_named(folder, mistake):
    change, sentence = WRONG[mistake]
    mine = reader(folder, "coco", broken(change))
    with pytest.raises(ImageError, match=f"annotations.json: {sentence}"):
        mine.truth("segmentation", mine.images()[0])


@pytest.mark.parametrize(
    ("box", "sentence"),
    [
        ([2, 1, 4], "has the box .*, not x, y, width, height"),
        ([2, 1, 0, 3], "has the empty box"),
        ([2, 1, 8, 3], "has the box .* outside the 8 x 6 image"),
        ([-2, 1, 4, 3], "has the box .* outside the 8 x 6 image"),
    ],
)
def test_a_box_that_cannot_be_used_is_named(folder, box, sentence):
    mine = reader(folder, "coco", broken(annotation(0, bbox=box)))
    with pytest.raises(ImageError, match=f"annotations.json: annotation 1 {sentence}"):
        mine.truth("detection", mine.images()[0])


def test_an_image_of_the_annotations_that_is_not_there(folder):
    mine = reader(folder, "coco")
    (folder / "images/b.JPG").unlink()
    for read in (mine.image, lambda image: mine.truth("detection", image)):
        with pytest.raises(ImageError, match="b.JPG: no such file"):
            read(mine.images()[1])


@pytest.mark.parametrize(
    ("pixels", "sentence"),
    [
        (np.full(SIZE, 9, np.uint8), r"label 9 is neither a class \(0..2\) nor void \(255\)"),
        (np.full((*SIZE, 3), 9, np.uint8), r"pixels are colours \(RGB\), not class ids"),
        (np.full(SIZE, 300, np.uint16), r"pixels are colours \(I;16\), not class ids"),
        (np.zeros((8, 6), np.uint8), "label map is 6 x 8 and its image 8 x 6"),
    ],
)
def test_label_maps_that_cannot_be_used(folder, pixels, sentence):
    Image.fromarray(pixels).save(folder / "masks/a.png")
    with pytest.raises(ImageError, match=f"masks/a.png: {sentence}"):
        reader(folder, "masks").truth("segmentation", (folder / "images", "a"))


def test_a_label_map_in_the_colour_of_no_class(folder):
    Image.fromarray(np.full((*SIZE, 3), 9, np.uint8)).save(folder / "masks/a.png")
    classes = CLASSES | {"colours": ["#000000", "#0a0b0c", "#ff0000"]}
    with pytest.raises(ImageError, match=r"masks/a.png: the colour \(9, 9, 9\) is that of no class"):
        reader(folder, "masks", classes=classes).truth("segmentation", (folder / "images", "a"))


def test_label_maps_have_no_boxes(folder):
    with pytest.raises(ImageError, match="mine has label maps and no boxes"):
        reader(folder, "masks").truth("detection", (folder / "images", "a"))


@pytest.mark.parametrize(
    ("pixels", "sentence"),
    [
        (np.zeros((*SIZE, 4), np.uint8), r"transparent pixels \(RGBA\)"),
        (np.zeros((*SIZE, 2), np.uint8), r"transparent pixels \(LA\)"),
        (np.zeros(SIZE, np.uint16), r"more than 8 bits \(I;16\)"),
    ],
)
def test_pictures_that_are_no_photographs(tmp_path, pixels, sentence):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=f"a.png: .*{sentence}"):
        image_files.read_picture(tmp_path / "a.png")


def test_folders_of_images(tmp_path):
    with pytest.raises(ValueError, match="there is no .jpg, .jpeg or .png file in it"):
        image_files.names(tmp_path)
    for name in ("b.png", "a.JPEG", ".hidden.png", "c.txt"):
        (tmp_path / name).touch()
    assert image_files.names(tmp_path) == ["a", "b"]
    (tmp_path / "a.jpg").touch()
    with pytest.raises(ValueError, match="two images are called a"):
        image_files.names(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        image_files.names(tmp_path / "absent")


def test_a_voc_tree_with_classes_of_its_own(tmp_path):
    for part in ("JPEGImages", "Annotations", "SegmentationClass"):
        (tmp_path / part).mkdir()
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / "JPEGImages/a.PNG")
    Image.fromarray(np.ones(SIZE, np.uint8)).save(tmp_path / "SegmentationClass/a.png")
    box = "<xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>3</ymax>"
    text = f"<annotation><object><name>License-Plate</name><bndbox>{box}</bndbox></object></annotation>"
    (tmp_path / "Annotations/a.xml").write_text(text)
    classes = {"names": ["background", "license plate"], "background": "background"}
    mine = readers.reader_of({"classes": classes})
    found = mine.truth("detection", (tmp_path, "a"))
    assert found.boxes.tolist() == [[0, 0, 3, 2]] and found.labels.tolist() == [1]
    assert (mine.truth("segmentation", (tmp_path, "a")) == 1).all()
    with pytest.raises(ImageError, match="'License-Plate' is not a class of the image set"):
        readers.VOC_LAYOUT.truth("detection", (tmp_path, "a"))
    assert ClassList.of(classes).name(1) == "license plate"


def test_a_format_that_lacks_a_part_cannot_be_used():
    class Half(readers.Reader):
        def files(self, kind, image):
            return []

    with pytest.raises(TypeError, match=r"abstract methods '?_truth'?, '?has'?"):
        Half({})
