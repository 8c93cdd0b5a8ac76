"""Perturbations and images as files: what is right is read as it is, every mistake gets its sentence."""

import re

import numpy as np
import pytest
from PIL import Image

from dag.data.image_sets import ImageError
from dag.data.pictures import read_perturbation

IMAGE = np.full((3, 4, 6), 100, np.float32)


def test_arrays_are_read_as_they_are(tmp_path):
    r = np.random.default_rng(0).uniform(-100, 155, IMAGE.shape).astype(np.float32)
    np.save(tmp_path / "a.npy", r)
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")  # the array counts
    assert np.array_equal(read_perturbation(tmp_path, "a", IMAGE), r)
    for kind in (np.float64, np.float16, np.int8):
        np.save(tmp_path / "a.npy", r.astype(kind) / 2 if kind == np.float64 else (r / 2).astype(kind))
        found = read_perturbation(tmp_path, "a", IMAGE)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, np.load(tmp_path / "a.npy").astype(np.float32))


def test_a_picture_is_the_perturbed_image(tmp_path):
    pixels = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
    Image.fromarray(pixels).save(tmp_path / "b.png")
    assert np.array_equal(IMAGE + read_perturbation(tmp_path, "b", IMAGE), pixels.transpose(2, 0, 1))


def test_rounding_may_leave_the_range_a_little(tmp_path):
    np.save(tmp_path / "a.npy", np.full(IMAGE.shape, 155.0005))
    assert read_perturbation(tmp_path, "a", IMAGE).max() == np.float32(155.0005)
    np.save(tmp_path / "a.npy", np.full(IMAGE.shape, 200))
    assert read_perturbation(tmp_path, "a", IMAGE, unclipped=True).max() == 200


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((4, 6, 3)), "float64 of the shape (4, 6, 3), the image has (3, 4, 6); write numbers (3, H, W)"),
        (np.zeros((3, 4, 6), complex), "complex128 of the shape"),
        (np.full((3, 4, 6), np.nan), "has values that are not finite"),
        (np.full((3, 4, 6), 155.01), "image + r reaches from 255.01 to 255.01, beyond 0..255"),
        (np.full((3, 4, 6), -100.25), "image + r reaches from -0.25 to -0.25, beyond 0..255; give r in grey levels"),
    ],
)
def test_arrays_that_are_refused(tmp_path, array, says):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ImageError, match=re.escape(f"{tmp_path / 'a.npy'}: {says}")):
        read_perturbation(tmp_path, "a", IMAGE)


def test_files_that_are_refused(tmp_path):
    with pytest.raises(ImageError, match=r"there is neither a.npy nor a.png$"):
        read_perturbation(tmp_path, "a", IMAGE)
    Image.new("RGBA", (6, 4)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"a.png: cannot be read \(its mode is RGBA; write RGB of 8 bits\)"):
        read_perturbation(tmp_path, "a", IMAGE)
    Image.new("RGB", (4, 6)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=re.escape("the shape (3, 6, 4), the image has (3, 4, 6)")):
        read_perturbation(tmp_path, "a", IMAGE)
    for content in (b"", b"no picture", b"\x89PNG\r\n\x1a\n"):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(ImageError, match="a.png: cannot be read"):
            read_perturbation(tmp_path, "a", IMAGE)
    np.save(tmp_path / "a.npy", np.array([{"code": 1}]), allow_pickle=True)
    with pytest.raises(ImageError, match="a.npy: cannot be read .Object arrays cannot be loaded"):
        read_perturbation(tmp_path, "a", IMAGE)
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\1\0")
    with pytest.raises(ImageError, match="a.npy: cannot be read"):
        read_perturbation(tmp_path, "a", IMAGE)
