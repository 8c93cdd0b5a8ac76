"""Arithmetic on perturbations and the names of recipes: closed forms and cases done by hand."""

import math

import numpy as np
import pytest

from dag.attack.arithmetic import add, apply, control, gaussian, perceptibility, permute, random_signs, scale
from dag.workflow.names import PerturbationName, parse
from dag.workflow.seeds import generator


def field(seed: int = 0, shape: tuple = (3, 7, 11)) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, shape).astype(np.float32)


# Names


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("none", PerturbationName(())),
        ("fr-zf-07", PerturbationName(("fr-zf-07",))),
        ("a@nms-50", PerturbationName(("a@nms-50",))),
        ("a+b", PerturbationName(("a", "b"))),
        ("b+a", PerturbationName(("b", "a"))),
        ("a+a@x", PerturbationName(("a", "a@x"))),
        ("a.permuted-1", PerturbationName(("a",), control="permuted", draw=1)),
        ("a@x+b+c9.permuted-12", PerturbationName(("a@x", "b", "c9"), control="permuted", draw=12)),
        ("a.signs", PerturbationName(("a",), control="signs")),
        ("a.p-4", PerturbationName(("a",), scale=4)),
        ("a+b.p-16.gaussian-2", PerturbationName(("a", "b"), 16, "gaussian", 2)),
        ("p-4", PerturbationName(("p-4",))),
        ("0+1", PerturbationName(("0", "1"))),
    ],
)
def test_a_name_and_its_recipe_say_the_same(name, recipe):
    assert parse(name) == recipe
    assert str(recipe) == name


@pytest.mark.parametrize(
    "name",
    [
        "", "+", "a+", "+a", "a++b", "A", "a b", "a_b", "-a", "a@", "@x", "a@x@y", "a/b", "../a", "a.p-0",
        "a.permuted-", "a.permuted-x", "a.permuted-1.permuted-2", "a.permuted-1+b", "a\n", "a.h5", "ä", "a.permuted--1",
        "a.permuted-0", "a.permuted-01", "none+a", "none.permuted-1", "a+none",
        "a.p-4.p-4", "a.p-1.5", "a.p--1", "a.permuted-1.p-4", "a.noise-1", "a.gaussian.signs", "none.p-4",
    ],
)  # fmt: skip
def test_a_malformed_name_is_refused(name):
    with pytest.raises(ValueError, match="is not the name of a perturbation; write none, network"):
        parse(name)


@pytest.mark.parametrize("name", ["a+a", "a+b+a", "a@x+a@x", "a+a.permuted-1"])
def test_a_source_is_named_once(name):
    with pytest.raises(ValueError, match="adds the same perturbation twice"):
        parse(name)


# Chance


def test_a_generator_depends_on_its_parts_alone():
    # the first two numbers of PCG64 seeded with the first 16 bytes of SHA-256("x\x1f1"), computed by hashlib alone
    import hashlib

    seed = int(hashlib.sha256(b"x\x1f1").hexdigest()[:32], 16)
    assert np.array_equal(generator("x", 1).random(2), np.random.default_rng(seed).random(2))
    assert np.array_equal(generator("x", 1).random(2), generator("x", "1").random(2))


def test_generators_of_different_parts_differ():
    parts = [("a", "bc"), ("ab", "c"), ("abc",), ("a", "b", "c"), ("c", "ab"), ("a", "bc", ""), ("", "a", "bc")]
    assert len({generator(*part).random() for part in parts}) == len(parts)


# Sums


def test_a_sum_is_element_by_element():
    first, second, third = field(1), field(2), field(3)
    total = add([first, second, third])
    assert total.dtype == np.float32
    exact = first.astype(np.float64) + second + third
    np.testing.assert_allclose(total, exact, rtol=1e-6, atol=1e-6)
    assert np.array_equal(add([first]), first)


def test_a_sum_with_the_opposite_is_zero():
    assert not add([field(), -field()]).any()


@pytest.mark.parametrize("other", [(3, 11, 7), (3, 7, 10), (1, 7, 11)])
def test_perturbations_of_different_shapes_are_not_added(other):
    with pytest.raises(ValueError, match="of different shapes .* cannot be added; are they of one image"):
        add([field(), field(shape=other)])


# Permuted control


def test_permuting_keeps_the_values_of_every_channel():
    r = field()
    shuffled = permute(r, generator("test"))
    assert shuffled.shape == r.shape and shuffled.dtype == r.dtype
    assert not np.array_equal(shuffled, r)
    for channel in range(3):
        assert np.array_equal(np.sort(shuffled[channel], axis=None), np.sort(r[channel], axis=None))


def test_permuting_shuffles_rows_and_columns_and_all_channels_alike():
    # every value tells where it comes from: 10000 channel + 100 row + column
    channel, row, column = np.meshgrid(np.arange(3), np.arange(7), np.arange(11), indexing="ij")
    r = (10000 * channel + 100 * row + column).astype(np.float32)
    shuffled = permute(r, generator("where")).astype(int)
    rows, columns = shuffled[0, :, 0] // 100, shuffled[0, 0] % 100
    assert sorted(rows) == list(range(7)) and sorted(columns) == list(range(11))
    assert list(rows) != list(range(7)) and list(columns) != list(range(11))
    expected = 10000 * np.arange(3)[:, None, None] + 100 * rows[:, None] + columns
    assert np.array_equal(shuffled, expected)


def test_permuting_is_uniform():
    # 3! orders of the rows, 6000 draws: chi-square with 5 degrees of freedom is below 20.5 in 99.9 % of cases
    rng, counts = generator("uniform"), {}
    r = np.zeros((3, 3, 1), np.float32)
    r[:, :, 0] = [0, 1, 2]
    for _ in range(6000):
        order = tuple(permute(r, rng)[0, :, 0].astype(int))
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 20.5


def test_perceptibility_of_the_control_is_that_of_the_perturbation():
    r = field()
    assert perceptibility(permute(r, generator(1))) == pytest.approx(perceptibility(r), rel=1e-12)


# Perceptibility


@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 4, 9), (3, 375, 500)])
def test_perceptibility_of_a_constant_of_one_grey_level(shape):
    assert perceptibility(np.ones(shape, np.float32)) == pytest.approx(math.sqrt(3) / 255, rel=1e-12)


def test_perceptibility_by_hand():
    # two pixels: (3, 4, 0) with norm 5 and (0, 0, 12) with norm 12; sqrt((25 + 144) / 2) / 255
    r = np.array([[[3, 0]], [[4, 0]], [[0, 12]]], np.float32)
    assert perceptibility(r) == pytest.approx(math.sqrt(169 / 2) / 255, rel=1e-12)
    assert perceptibility(np.zeros_like(r)) == 0


def test_perceptibility_is_computed_in_double_precision():
    # in float32 the sum of many equal squares loses digits
    assert perceptibility(np.full((3, 1000, 1000), 0.1, np.float32)) == pytest.approx(
        math.sqrt(3) * float(np.float32(0.1)) / 255, rel=1e-12
    )


# Multiples and controls


def test_a_perturbation_is_scaled_to_a_perceptibility():
    r = field(4)
    scaled = scale(r, 0.004)
    assert scaled.dtype == np.float32
    assert perceptibility(scaled) == pytest.approx(0.004, rel=1e-6)
    assert np.allclose(scaled / r, (scaled / r)[0, 0, 0], rtol=1e-5), "all values by the same factor"
    assert np.array_equal(scale(np.zeros_like(r), 0.004), np.zeros_like(r)), "nothing has no direction"


def test_random_signs_keep_every_size_and_no_direction():
    r = field(5, (3, 60, 80))
    drawn = random_signs(r, generator("signs"))
    assert np.array_equal(abs(drawn), abs(r)) and drawn.dtype == r.dtype
    # 14,400 fair coins: the share of changed signs is 0.5 within 5 standard deviations of 1 / (2 sqrt(14,400))
    assert np.mean(drawn != r) == pytest.approx(0.5, abs=5 / 240)


def test_gaussian_noise_has_the_perceptibility_and_the_moments():
    r = field(6, (3, 60, 80))
    noise = gaussian(r, generator("noise"))
    assert noise.dtype == r.dtype and noise.shape == r.shape
    assert perceptibility(noise) == pytest.approx(perceptibility(r), rel=1e-6)
    # p is sqrt(3) sigma / 255; the fourth moment of a normal distribution is 3 sigma^4, here within 5 sqrt(96 / n)
    sigma = 255 * perceptibility(r) / math.sqrt(3)
    assert np.mean((noise / sigma) ** 4) == pytest.approx(3, abs=5 * math.sqrt(96 / r.size))
    assert np.array_equal(gaussian(np.zeros_like(r), generator("noise")), np.zeros_like(r))


@pytest.mark.parametrize(("kind", "function"), [("permuted", permute), ("signs", random_signs), ("gaussian", gaussian)])
def test_controls_by_name(kind, function):
    r = field(7)
    assert np.array_equal(control(r, kind, generator(1)), function(r, generator(1)))
    assert not np.array_equal(control(r, kind, generator(1)), control(r, kind, generator(2)))


# The image that a network sees


def test_the_perturbed_image_is_truncated():
    image = np.array([0, 1, 254, 255, 100, 100], np.float32).reshape(3, 1, 2)
    r = np.array([-0.5, -1.25, 2, 0.25, 0.5, -200], np.float32).reshape(3, 1, 2)
    assert apply(image, r, "float").ravel().tolist() == [0, 0, 255, 255, 100.5, 0]


def test_rounding_is_to_the_nearest_and_half_to_even():
    # a fair rule: rounding halves up would brighten the image by half a level wherever r is +-0.5
    image = np.full((3, 1, 2), 100, np.float32)
    r = np.array([0.5, 1.5, -0.5, -1.5, 0.49, 0.51], np.float32).reshape(3, 1, 2)
    assert apply(image, r, "8-bit").ravel().tolist() == [100, 102, 100, 98, 100, 101]


def test_the_rounded_image_survives_eight_bits():
    image = np.random.default_rng(0).integers(0, 256, (3, 20, 20)).astype(np.float32)
    seen = apply(image, 40 * field(shape=(3, 20, 20)), "8-bit")
    assert seen.dtype == np.float32
    assert np.array_equal(seen.astype(np.uint8), seen)
    assert np.array_equal(apply(image, np.zeros_like(image), "8-bit"), image)
    assert np.array_equal(apply(image, np.zeros_like(image), "float"), image)


@pytest.mark.parametrize("quality", [1, 75, 100])
def test_a_jpeg_file_is_what_another_decoder_reads(quality):
    import cv2

    # smooth, so that colours at half the resolution are no matter of taste between decoders
    ramp = np.linspace(20, 200, 48, dtype=np.float32)
    image = np.stack([np.tile(ramp, (32, 1)), np.full((32, 48), 90, np.float32), np.tile(ramp[::-1], (32, 1))])
    seen = apply(image, np.full_like(image, 0.4), f"jpeg-{quality}")
    parameters = [cv2.IMWRITE_JPEG_QUALITY, quality]
    _, file = cv2.imencode(".jpg", np.rint(image).astype(np.uint8).transpose(1, 2, 0)[..., ::-1], parameters)
    other = cv2.imdecode(file, cv2.IMREAD_COLOR)[..., ::-1].transpose(2, 0, 1)
    assert seen.dtype == np.float32 and seen.shape == image.shape
    assert np.abs(seen - other).max() <= 3


def test_a_coarse_jpeg_file_loses_a_fine_perturbation():
    image, r = np.full((3, 64, 64), 128, np.float32), 2 * np.sign(field(8, (3, 64, 64)))
    left = {pixels: perceptibility(apply(image, r, pixels) - image) for pixels in ("8-bit", "jpeg-95", "jpeg-50")}
    assert left["8-bit"] == pytest.approx(perceptibility(r))
    assert left["8-bit"] > left["jpeg-95"] > left["jpeg-50"]


def test_the_inputs_are_left_alone():
    image, r = np.full((3, 2, 2), 250, np.float32), np.full((3, 2, 2), 10, np.float32)
    apply(image, r, "8-bit")
    permute(r, generator(0))
    add([r, r])
    assert (image == 250).all() and (r == 10).all()


def test_a_perturbation_must_fit_its_image():
    # numpy would broadcast (3, 1, 1)
    with pytest.raises(ValueError, match=r"a perturbation of shape \(3, 1, 1\) does not fit an image of shape"):
        apply(np.zeros((3, 2, 2), np.float32), np.zeros((3, 1, 1), np.float32), "float")


def test_unknown_pixels_are_refused():
    for pixels in ("16-bit", "jpeg", "jpeg-0", "jpeg-101", "jpeg-75\n"):
        with pytest.raises(ValueError, match="is unknown; choose from float, 8-bit"):
            apply(np.zeros((3, 1, 1)), np.zeros((3, 1, 1)), pixels)
