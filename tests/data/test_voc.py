"""The VOC reader, on files written by hand and on real ones."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from fake_archives import sbd_archive, sbd_mat, scene
from PIL import Image
from scipy.io import savemat

from dag.data import image_sets, readers, voc
from dag.data.archives import unpack

SHARED = Path(__file__).parents[2].parent / "shared" / "voc"

OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult>
<bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>"""


@pytest.fixture
def root(tmp_path):
    """A year with one 8 x 6 image `a`: red on the left, blue on the right."""
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    image = np.zeros((6, 8, 3), np.uint8)
    image[:, :4, 0] = image[:, 4:, 2] = 255
    Image.fromarray(image).save(tmp_path / "JPEGImages/a.jpg", quality=100, subsampling=0)
    write_mask(tmp_path, np.repeat([[0, 0, 1, 1, 20, 20, 255, 255]], 6, 0))
    write_objects(tmp_path, OBJECT.format(1, 1, 8, 6, name="cat", difficult=0))
    return tmp_path


def write_mask(root, labels):
    mask = Image.fromarray(np.asarray(labels, np.uint8))
    mask.putpalette(voc.colour_map().tobytes())
    mask.save(root / "SegmentationClass/a.png")


def write_objects(root, text):
    (root / "Annotations/a.xml").write_text(f"<annotation>{text}</annotation>")


def test_classes_are_in_alphabetical_order():
    assert len(voc.CLASSES) == 21
    assert list(voc.CLASSES[1:]) == sorted(voc.CLASSES[1:])
    assert voc.CLASSES.index("aeroplane") == 1 and voc.CLASSES.index("person") == 15


def test_colour_map_holds_the_published_colours():
    colours = voc.colour_map()
    published = {0: (0, 0, 0), 1: (128, 0, 0), 4: (0, 0, 128), 7: (128, 128, 128), 8: (64, 0, 0)}
    published |= {15: (192, 128, 128), 16: (0, 64, 0), 20: (0, 64, 128), 255: (224, 224, 192)}
    assert colours.shape == (256, 3) and colours.dtype == np.uint8
    assert {label: tuple(map(int, colours[label])) for label in published} == published
    assert len(np.unique(colours, axis=0)) == 256


@pytest.mark.parametrize(
    "content",
    [b"000002\n000001\n\n", b"000002\r\n 000001\t", b"\xef\xbb\xbf000002\n000001"],
    ids=["lines", "Windows", "byte order mark"],
)
def test_ids_are_lines(tmp_path, content):
    (tmp_path / "list.txt").write_bytes(content)
    assert image_sets.read_ids(tmp_path / "list.txt") == ["000002", "000001"]


def test_ids_in_other_scripts(tmp_path):
    (tmp_path / "list.txt").write_text("été_1.b\n図2(a)\n", encoding="utf-8")
    assert image_sets.read_ids(tmp_path / "list.txt") == ["été_1.b", "図2(a)"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n \n", "the image list is empty"),
        (b"000001\na/b\n", "line 2: 'a/b' is not an image id; write one id per line"),
        (b"../../x", "line 1: '../../x' is not an image id"),
        (b"..", "line 1: '..' is not an image id"),
        (b"a\\b", r"line 1: 'a\\\\b' is not an image id"),
        (b"a\n\nb\0", r"line 3: 'b\\x00' is not an image id"),
        (b"a\n\xef\xbb\xbfb", r"line 2: '\\ufeffb' is not an image id"),
        (b"a\x0cb", r"line 1: 'a\\x0cb' is not an image id"),
        (b"000005 -1\n000007  1\n", "line 1: '000005 -1' is not an image id"),
        ("a\n".encode("utf-16"), "the image list is not UTF-8 text"),
        ("a\n".encode("utf-16-le"), r"line 1: 'a\\x00' is not an image id"),
        (b"\x89PNG\r\n", "the image list is not UTF-8 text"),
    ],
)
def test_other_lists_are_refused(tmp_path, content, message):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"list\.txt(: |, )" + message):
        image_sets.read_ids(tmp_path / "list.txt")


def test_an_absent_list_is_refused(tmp_path):
    with pytest.raises(ValueError, match="absent.txt: no such image list"):
        image_sets.read_ids(tmp_path / "absent.txt")


def test_digest_is_that_of_sort_and_sha256sum():
    # printf 'a\nb\n' | sha256sum
    expected = "911169ddaaf146aff539f58c26c489af3b892dff0fe283c1c264c65ae5aa59a2"
    assert image_sets.digest(["b", "a", "b"]) == expected


def test_select_by_hand():
    ids = ["2008_000003", "2007_000001", "2007_000002", "2008_000004", "2007_000001"]
    assert image_sets.select(iter(ids)) == ids[:4]
    assert image_sets.select(ids, without=["2008_000003", "2009_000009"]) == [
        "2007_000001",
        "2007_000002",
        "2008_000004",
    ]
    # 000003 of 2007 is not 2008_000003
    assert image_sets.select(ids, without_2007=["000002", "000003"]) == ["2008_000003", "2007_000001", "2008_000004"]
    assert image_sets.select(ids, within=iter(ids)) == ids[:4]
    assert image_sets.select(ids, within=ids[:3], without=["2008_000004"]) == ids[:3]


def test_select_from_wrong_lists():
    with pytest.raises(ValueError, match="^image set mine: 2 of its ids, the first is b, are not in the list that"):
        image_sets.select(["c", "b", "a"], within=["a", "d"], name="mine")
    with pytest.raises(ValueError, match="^image set: no image is left; unpack"):
        image_sets.select(["a"], without=["a"])


def test_sets_as_great_as_the_real_ones():
    """1449 validation images: 545 in SBD train, 217 of VOC2007 trainval among the other 904."""
    val = [f"2007_{number:06d}" for number in range(321)] + [f"2010_{number:06d}" for number in range(1128)]
    sbd_train = [f"2010_{number:06d}" for number in range(545)] + [f"2011_{number:06d}" for number in range(7953)]
    trainval_2007 = [f"{number:06d}" for number in range(104, 5115)]
    assert (len(val), len(sbd_train), len(trainval_2007)) == (1449, 8498, 5011)
    assert len(image_sets.select(val, without=sbd_train)) == 904
    assert len(image_sets.select(val, without=sbd_train, without_2007=trainval_2007)) == 687


def test_image_is_rgb_with_channels_first(root):
    image = voc.read_image(root, "a")
    assert image.shape == (3, 6, 8) and image.dtype == np.float32 and image.flags.c_contiguous
    assert np.allclose(image[:, 3, 0], (255, 0, 0), atol=6) and np.allclose(image[:, 3, 7], (0, 0, 255), atol=6)


def test_grey_image_gets_three_channels(root):
    Image.fromarray(np.full((6, 8), 77, np.uint8)).save(root / "JPEGImages/a.jpg", quality=100)
    assert (voc.read_image(root, "a") == 77).all()


def test_damaged_images_are_refused(root):
    path = root / "JPEGImages/a.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(ValueError, match=r"a.jpg: damaged image \(.*truncated"):
        voc.read_image(root, "a")
    path.write_bytes(b"not a picture")
    with pytest.raises(ValueError, match="a.jpg: damaged image"):
        voc.read_image(root, "a")
    path.unlink()
    with pytest.raises(ValueError, match="a.jpg: no such file"):
        voc.read_image(root, "a")


@pytest.mark.parametrize("edge", [10_000, 60_000])
def test_images_with_too_many_pixels_are_refused(root, edge):
    """The header of a small PNG that claims to be of this size; Pillow warns of the first and refuses the second."""
    path, buffer = root / "JPEGImages/a.jpg", io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(buffer, "PNG")
    header = b"IHDR" + struct.pack(">II", edge, edge) + buffer.getvalue()[24:29]
    content = buffer.getvalue()[:12] + header + struct.pack(">I", zlib.crc32(header)) + buffer.getvalue()[33:]
    path.write_bytes(content)
    for read in (voc.read_image, voc.read_objects, voc.read_label_map):
        with pytest.raises(ValueError, match=rf"a.jpg: too many pixels \(.*{edge**2} pixels"):
            read(root, "a")


def test_an_exif_orientation_is_ignored(root):
    path = root / "JPEGImages/a.jpg"
    before = voc.read_image(root, "a")
    with Image.open(path) as image:
        exif = image.getexif()
        exif[0x0112] = 6  # to be turned by a quarter
        image.save(path, exif=exif, quality="keep")
    assert np.array_equal(voc.read_image(root, "a"), before)
    # an annotation of the turned picture
    write_objects(root, "<size><width>6</width><height>8</height></size>")
    with pytest.raises(ValueError, match="a.xml: its <size> is 6 x 8 and the image 8 x 6"):
        voc.read_objects(root, "a")


def test_label_map_holds_palette_indices(root):
    labels = voc.read_label_map(root, "a")
    assert labels.dtype == np.uint8
    assert labels.tolist() == [[0, 0, 1, 1, 20, 20, 255, 255]] * 6


def renumbered(path):
    """Save a label map with the colours that occur alone, as image editors do: 0, 1, 20, 255 become 0, 1, 2, 3."""
    with Image.open(path) as mask:
        used, labels = np.unique(np.asarray(mask), return_inverse=True)
        colours = np.reshape(mask.getpalette(), (-1, 3))[used]
    mask = Image.fromarray(labels.reshape(mask.height, mask.width).astype(np.uint8))
    mask.putpalette(colours.astype(np.uint8).tobytes())
    mask.save(path)


def test_a_renumbered_palette_is_read_by_colour(root):
    expected = voc.read_label_map(root, "a")
    renumbered(root / "SegmentationClass/a.png")
    with Image.open(root / "SegmentationClass/a.png") as mask:
        assert np.unique(np.asarray(mask)).tolist() == [0, 1, 2, 3]
    assert np.array_equal(voc.read_label_map(root, "a"), expected)


@pytest.mark.parametrize(
    ("palette", "message"),
    [
        ([0, 0, 0] + [1, 2, 3] * 255, r"a.png: palette index 1 has the colour \(1, 2, 3\), which no class has"),
        ([0, 0, 0] + [128, 64, 128] * 255, r"a.png: palette index 1 has the colour \(128, 64, 128\), which no"),
    ],
)
def test_foreign_palettes_are_refused(root, palette, message):
    mask = Image.fromarray(np.repeat([[0, 0, 1, 1, 20, 20, 20, 20]], 6, 0).astype(np.uint8))
    mask.putpalette(palette)
    mask.save(root / "SegmentationClass/a.png")
    with pytest.raises(ValueError, match=message):
        voc.read_label_map(root, "a")


def test_a_palette_without_an_index_that_occurs_is_refused(root):
    path = root / "SegmentationClass/a.png"
    content = path.read_bytes()
    start = content.index(b"PLTE")
    chunk = b"PLTE" + content[start + 4 :][:9]  # three colours of 256
    short = struct.pack(">I", 9) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(content[: start - 4] + short + content[start + 4 + 768 + 4 :])
    with pytest.raises(ValueError, match="a.png: palette index (20|255) has the colour none"):
        voc.read_label_map(root, "a")


def test_grey_label_maps_hold_ids(root):
    labels = np.repeat([[0, 0, 1, 1, 20, 20, 255, 255]], 6, 0).astype(np.uint8)
    Image.fromarray(labels).save(root / "SegmentationClass/a.png")
    assert np.array_equal(voc.read_label_map(root, "a"), labels)


def test_wrong_label_maps_are_refused(root):
    write_mask(root, np.full((6, 8), 21))
    with pytest.raises(ValueError, match=r"a.png: palette index 21 has the colour \(128, 64, 128\), which no"):
        voc.read_label_map(root, "a")
    write_mask(root, np.zeros((8, 6)))
    with pytest.raises(ValueError, match="a.png: label map is 6 x 8 and its image 8 x 6"):
        voc.read_label_map(root, "a")
    Image.fromarray(np.full((6, 8, 3), 9, np.uint8)).save(root / "SegmentationClass/a.png")
    with pytest.raises(ValueError, match=r"a.png: the colour \(9, 9, 9\) is that of no class"):
        voc.read_label_map(root, "a")
    Image.fromarray(np.zeros((6, 8, 4), np.uint8)).save(root / "SegmentationClass/a.png")
    with pytest.raises(ValueError, match=r"a.png: pixels are colours \(RGBA\)"):
        voc.read_label_map(root, "a")
    (root / "SegmentationClass/a.png").unlink()
    with pytest.raises(ValueError, match="a.png: no such file"):
        voc.read_label_map(root, "a")


def test_boxes_become_zero_based(root):
    cat = OBJECT.format(1, 2, 8, 6, name="cat", difficult=0)
    write_objects(root, cat + OBJECT.format("2.5", 1, 4, 5, name=" tvmonitor ", difficult=1))
    objects = voc.read_objects(root, "a")
    assert objects.boxes.dtype == np.float32 and objects.labels.dtype == np.int64 and objects.difficult.dtype == bool
    assert objects.boxes.tolist() == [[0, 1, 7, 5], [1.5, 0, 3, 4]]
    assert objects.labels.tolist() == [8, 20]
    assert objects.difficult.tolist() == [False, True]


def test_boxes_of_parts_are_not_the_object(root):
    head = "<part><name>head</name><bndbox><xmin>3</xmin><ymin>3</ymin><xmax>4</xmax><ymax>4</ymax></bndbox></part>"
    write_objects(root, OBJECT.format(1, 1, 8, 6, name="person", difficult=0).replace("<bndbox>", head + "<bndbox>", 1))
    assert voc.read_objects(root, "a").boxes.tolist() == [[0, 0, 7, 5]]


def test_no_objects_have_shapes(root):
    write_objects(root, "")
    objects = voc.read_objects(root, "a")
    assert objects.boxes.shape == (0, 4) and objects.labels.shape == objects.difficult.shape == (0,)


def test_box_may_stick_out_by_one_pixel(root):
    write_objects(root, OBJECT.format(0, 0, 9, 7, name="cat", difficult=0))
    assert voc.read_objects(root, "a").boxes.tolist() == [[-1, -1, 8, 6]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (OBJECT.format(1, 1, 8, 6, name="unicorn", difficult=0), "'unicorn' is not a class of the image set"),
        (OBJECT.format(1, 1, 8, 6, name="background", difficult=0), "'background' is not a class of the image set"),
        (OBJECT.format(-1, 1, 8, 6, name="cat", difficult=0), "outside the 8 x 6 image"),
        (OBJECT.format(1, 1, 10, 6, name="cat", difficult=0), "outside the 8 x 6 image"),
        (OBJECT.format(1, 1, 8, 8, name="cat", difficult=0), "outside the 8 x 6 image"),
        (OBJECT.format(5, 1, 4, 6, name="cat", difficult=0), "is empty"),
        (OBJECT.format(1, 6, 8, 1, name="cat", difficult=0), "is empty"),
        (OBJECT.format(1, "nan", 8, 6, name="cat", difficult=0), "is empty"),
        (OBJECT.format(1, "", 8, 6, name="cat", difficult=0), "is not a number"),
        (OBJECT.format(1, 1, 8, 6, name="cat", difficult="yes"), "is not a number"),
        ("<object><name>cat</name></object>", "is not a number"),
        ("<object>", "the annotation is damaged"),
        (
            OBJECT.format(1, 1, 8, 6, name="cat", difficult=0).replace("</object>", "<bndbox></bndbox></object>"),
            "a cat has several <bndbox>",
        ),
        (OBJECT.format(1, 1, 8, 6, name="cat</name><name>dog", difficult=0), "an <object> has several <name>"),
        (
            "<objects>" + OBJECT.format(1, 1, 8, 6, name="cat", difficult=0) + "</objects>",
            "<object> is not an <object>",
        ),
        ("<Object><name>cat</name></Object>", "<Object> is not an <object> right below <annotation>"),
        ("<size><width>16</width><height>12</height></size>", "its <size> is 16 x 12 and the image 8 x 6"),
        ("<size><width>wide</width></size>", "its <size> is not a number"),
    ],
)
def test_wrong_annotations_are_refused(root, text, message):
    write_objects(root, text)
    with pytest.raises(ValueError, match=f"a.xml: .*{message}"):
        voc.read_objects(root, "a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<html><body><p>Sign in</p></body></html>", "its root is <html>, not <annotation>"),
        (
            f'<annotation xmlns="urn:voc">{OBJECT.format(1, 1, 8, 6, name="cat", difficult=0)}</annotation>',
            "its root is <{urn:voc}annotation>, not <annotation>",
        ),
        ('<?xml version="1.0" encoding="gb2312"?><annotation/>', "cannot be decoded .*; save it as UTF-8"),
        ('<?xml version="1.0" encoding="foo"?><annotation/>', "cannot be decoded .*; save it as UTF-8"),
        ('<?xml version="1.0" encoding="utf-7"?><annotation/>', "cannot be decoded .*; save it as UTF-8"),
    ],
)
def test_other_xml_is_refused(root, text, message):
    (root / "Annotations/a.xml").write_text(text)
    with pytest.raises(ValueError, match=f"a.xml: .*{message}"):
        voc.read_objects(root, "a")


@pytest.mark.parametrize("size", ["", "<size/>", "<size><width>0</width><height>0</height></size>",
                                  "<size><width>8</width><height>6</height><depth>3</depth></size>"])  # fmt: skip
def test_a_size_may_be_unknown(root, size):
    write_objects(root, size + OBJECT.format(3, 2, 3, 2, name="cat", difficult=0))
    # and a box of one pixel is a box
    assert voc.read_objects(root, "a").boxes.tolist() == [[2, 1, 2, 1]]


def test_absent_annotation_is_refused(root):
    (root / "Annotations/a.xml").unlink()
    with pytest.raises(ValueError, match="a.xml: no such annotation"):
        voc.read_objects(root, "a")


# The Semantic Boundaries Dataset

LABELS = np.array([[0, 0, 20, 20, 1, 1, 0, 0]] * 6, np.uint8)


def test_label_map_of_sbd(tmp_path):
    (tmp_path / "a.mat").write_bytes(sbd_mat("GTcls", LABELS))
    labels = voc.read_sbd_label_map(tmp_path / "a.mat")
    assert labels.dtype == np.uint8 and np.array_equal(labels, LABELS)


def mat(labels):
    buffer = io.BytesIO()
    savemat(buffer, {"GTcls": {"Segmentation": labels}})
    return buffer.getvalue()


def test_damaged_label_maps_of_sbd(tmp_path):
    path, whole = tmp_path / "2008_000001.mat", sbd_mat("GTcls", LABELS)
    damaged = [b"", b"\0" * 500, whole[:130], whole[: len(whole) // 2], whole[:-20], b"<html>not found</html>" * 20]
    damaged += [sbd_mat("GTinst", LABELS), mat(np.zeros((2, 3, 4), np.uint8)), mat(LABELS / 2)]
    for place in range(128, len(whole), len(whole) // 12):
        damaged.append(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"^\S*2008_000001.mat: not a label map of SBD \(.+\); unpack") as caught:
            voc.read_sbd_label_map(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(mat(LABELS + 1))
    with pytest.raises(ValueError, match=r"2008_000001.mat: label 21 is not in 0..20"):
        voc.read_sbd_label_map(path)
    path.unlink()
    with pytest.raises(ValueError, match=r"2008_000001.mat: not a label map of SBD \(.*No such file"):
        voc.read_sbd_label_map(path)


def sbd(folder, replace=None):
    """The unpacked folder `dataset`."""
    archive = sbd_archive(folder, ["a", "b"], ["c", "a"], size=(48, 36), replace=replace)
    unpack(archive, folder / "SBD", lambda name: "/inst/" not in name and "/dataset/" in name, strip=2)
    return folder / "SBD"


def test_sbd_in_the_layout_of_voc(tmp_path):
    root, seen = sbd(tmp_path), []
    (root / "cls" / "unlisted.mat").write_bytes(b"damaged")
    voc.arrange_sbd(root, lambda ids: seen.extend(ids) or ids)
    assert seen == ["a", "b", "c"]
    assert sorted(path.relative_to(root).as_posix() for path in root.rglob("*.*")) == sorted(
        [f"JPEGImages/{i}.jpg" for i in "abc"]
        + [f"SegmentationClass/{i}.png" for i in "abc"]
        + [f"ImageSets/Segmentation/{name}.txt" for name in ("train", "val")]
    )
    assert image_sets.read_ids(root / "ImageSets/Segmentation/train.txt") == ["a", "b"]
    for image_id in "abc":
        image, labels, _ = scene(image_id, (48, 36))
        assert np.array_equal(voc.read_label_map(root, image_id), np.where(labels == voc.VOID, 0, labels))
        assert np.abs(voc.read_image(root, image_id) - image.transpose(2, 0, 1)).mean() < 16
    with Image.open(root / "SegmentationClass/a.png") as mask:
        assert np.array_equal(np.reshape(mask.getpalette(), (-1, 3)), voc.colour_map())


@pytest.mark.parametrize(
    ("replace", "message"),
    [
        ({"cls/c.mat": b"x" * 200}, r"cls/c.mat: not a label map of SBD"),
        ({"cls/c.mat": None}, r"cls/c.mat: not a label map of SBD \(.*No such file"),
        ({"img/b.jpg": None}, r"img/b.jpg: no such file, but SBD lists the image"),
        ({"val.txt": None}, r"val.txt: no such image list"),
    ],
)
def test_sbd_that_is_not_whole(tmp_path, replace, message):
    with pytest.raises(ValueError, match=message):
        voc.arrange_sbd(sbd(tmp_path, replace))


@pytest.mark.parametrize(("kind", "name"), [("image", "a.jpg"), ("segmentation", "a.png"), ("detection", "a.xml")])
def test_a_check_names_the_damaged_file(root, kind, name):
    tasks = ["segmentation", "detection"] if kind == "image" else [kind]
    for task in tasks:
        readers.check(readers.VOC_LAYOUT, [(root, "a")], task, range(21))
    voc.path_of(kind, root, "a").write_bytes(b"damaged")
    for task in tasks:
        with pytest.raises(image_sets.ImageError, match=name + ": .*damaged"):
            readers.check(readers.VOC_LAYOUT, [(root, "a")], task, range(21))


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_a_check_names_the_class_that_a_network_does_not_know(root, task):
    read = voc.read_label_map if task == "segmentation" else voc.read_objects
    shown = read(root, "a")
    labels = set(np.unique(getattr(shown, "labels", shown)).tolist()) - {0, voc.VOID}
    readers.check(readers.VOC_LAYOUT, [(root, "a")], task, {0, *labels})
    for label in labels:
        with pytest.raises(
            image_sets.ImageError, match=rf"/a\.\w+: shows {voc.CLASSES[label]}, which the network does not"
        ):
            readers.check(readers.VOC_LAYOUT, [(root, "a")], task, {0, *labels} - {label})


@pytest.mark.parametrize("read", [voc.read_image, voc.read_label_map, voc.read_objects])
def test_readers_say_that_one_image_is_to_blame(root, read):
    with pytest.raises(image_sets.ImageError, match="no such"):
        read(root, "b")


@pytest.mark.shared
@pytest.mark.parametrize(("year", "images", "objects"), [("VOC2007", 9, 32), ("VOC2012", 105, 307)])
def test_real_images_and_objects_are_read(year, images, objects):
    root = SHARED / year
    ids = sorted(path.stem for path in (root / "JPEGImages").iterdir())
    assert len(ids) == images
    found = 0
    for image_id in ids:
        _, height, width = voc.read_image(root, image_id).shape
        annotated = voc.read_objects(root, image_id)
        found += len(annotated.labels)
        assert annotated.boxes.min() >= 0 and (annotated.boxes.max(0) <= [width - 1, height - 1] * 2).all()
    # grep -h '<object>' Annotations/*.xml | wc -l
    assert found == objects


@pytest.mark.shared
def test_real_label_maps_show_the_annotated_classes():
    root = SHARED / "VOC2012"
    ids = sorted(path.stem for path in (root / "SegmentationClass").iterdir())
    for image_id in ids:  # their palette is VOC's, so ids are what is stored
        with Image.open(root / "SegmentationClass" / f"{image_id}.png") as mask:
            assert np.array_equal(voc.read_label_map(root, image_id), np.asarray(mask)), image_id
    assert len(ids) == 100 and set(image_sets.read_ids(root / "ImageSets/Segmentation/sample.txt")) <= set(ids)
    for image_id in ids:
        seen = set(np.unique(voc.read_label_map(root, image_id))) - {0, voc.VOID}
        assert seen == set(voc.read_objects(root, image_id).labels), image_id


@pytest.mark.shared
def test_colour_map_is_the_palette_of_real_label_maps():
    path = next((SHARED / "VOC2012/SegmentationClass").iterdir())
    with Image.open(path) as mask:
        assert np.array_equal(np.reshape(mask.getpalette(), (-1, 3)), voc.colour_map())
