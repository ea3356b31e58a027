"""Scattering features: against kymatio's numbers, against symmetries of the transform, and with hostile input."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.data.scattering import CHUNK, NUM_FEATURES, scattering_coefficients, scattering_features

VECTOR = Path(__file__).resolve().parent.parent / "vectors" / "scattering_kymatio.json"


def random_images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 28, 28), dtype=np.float32)


def test_coefficients_agree_with_kymatio():
    vector = json.loads(VECTOR.read_text(encoding="utf-8"))
    images = np.array(vector["pixels"], dtype=np.float32).reshape(3, 28, 28) / np.float32(255)
    expected = np.array(vector["coefficients"]).reshape(vector["shape"]) * vector["unit"]
    # kymatio's filters say 3.1415 for pi: 3e-5 of the largest coefficient, 1.
    np.testing.assert_allclose(scattering_coefficients(images), expected, rtol=0, atol=5e-5)


def test_transposed_image_gives_transposed_maps_of_mirrored_orientations():
    """Orientation o stands at (3 - o) * pi/8; mirrored in the diagonal it is 2 - o."""
    image = random_images(1)
    plain = scattering_coefficients(image)[0]
    mirrored = scattering_coefficients(np.ascontiguousarray(image.transpose(0, 2, 1)))[0].transpose(0, 2, 1)
    swap = (2 - np.arange(8)) % 8
    np.testing.assert_allclose(mirrored[0], plain[0], atol=1e-5)
    for start in (1, 9):
        np.testing.assert_allclose(mirrored[start : start + 8], plain[start : start + 8][swap], atol=1e-5)
    pairs = plain[17:].reshape(8, 8, 7, 7)
    np.testing.assert_allclose(mirrored[17:].reshape(8, 8, 7, 7), pairs[swap][:, swap], atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(factor=st.floats(0.015625, 1.0), seed=st.integers(0, 1000))
def test_coefficients_scale_with_the_image(factor, seed):
    image = random_images(1, seed)
    np.testing.assert_allclose(
        scattering_coefficients(image * np.float32(factor)), scattering_coefficients(image) * np.float32(factor), atol=2e-6
    )


def test_constant_image_has_no_wavelet_coefficients():
    coefficients = scattering_coefficients(np.full((1, 28, 28), 0.7, dtype=np.float32))
    np.testing.assert_allclose(coefficients[0, 0], 0.7, atol=1e-3)
    assert np.abs(coefficients[0, 1:]).max() < 1e-5


def test_every_group_of_features_has_mean_zero_and_variance_one():
    groups = scattering_features(random_images(5)).reshape(5, 27, 147)
    np.testing.assert_allclose(groups.mean(axis=2), 0, atol=1e-5)
    # eps = 1e-5 stands beside the variance of a group, which is small for second-order groups of noise.
    assert np.all(groups.var(axis=2) <= 1 + 1e-4)
    variance = scattering_coefficients(random_images(5)).reshape(5, 27, 147).var(axis=2)
    np.testing.assert_allclose(groups.var(axis=2), variance / (variance + 1e-5), rtol=1e-3)


def test_features_of_an_image_do_not_depend_on_its_company():
    images = random_images(CHUNK + 3)
    together = scattering_features(images)
    for index in (0, CHUNK - 1, CHUNK, CHUNK + 2):
        np.testing.assert_allclose(together[index], scattering_features(images[index : index + 1])[0], atol=1e-4)


def test_features_are_float32_finite_and_repeat_bit_for_bit():
    images = np.concatenate([random_images(2), np.zeros((1, 28, 28), np.float32), np.ones((1, 28, 28), np.float32)])
    features = scattering_features(images)
    assert features.dtype == np.float32
    assert features.shape == (4, NUM_FEATURES)
    assert np.isfinite(features).all()
    assert not features[2].any()
    np.testing.assert_array_equal(features, scattering_features(images))


def test_read_only_and_strided_images_are_taken():
    images = random_images(4)
    images.setflags(write=False)
    np.testing.assert_allclose(scattering_features(images[::2])[1], scattering_features(images)[2], atol=1e-4)


def test_no_image_gives_no_features():
    assert scattering_features(np.zeros((0, 28, 28), np.float32)).shape == (0, NUM_FEATURES)


def spoilt(value: float) -> np.ndarray:
    images = random_images(CHUNK + 2)
    images[CHUNK + 1, 27, 27] = value
    return images


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1e-3, 1.001, 255.0])
def test_pixels_outside_zero_to_one_are_refused(value):
    with pytest.raises(ValueError, match=r"0\.\.1: a pixel of images 64\.\.65"):
        scattering_features(spoilt(value))


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 28, 28)),
        np.zeros((2, 28, 28), np.uint8),
        np.zeros((28, 28), np.float32),
        np.zeros((2, 1, 28, 28), np.float32),
        np.zeros((2, 32, 32), np.float32),
        np.zeros((2, 784), np.float32),
    ],
    ids=lambda images: f"{images.dtype}-{images.shape}",
)
def test_other_shapes_and_types_are_refused(images):
    with pytest.raises(ValueError, match="float32"):
        scattering_features(images)
