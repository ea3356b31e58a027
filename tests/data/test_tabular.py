"""Digits and breast cancer: known records, public scales, a test part by class."""

import time

import numpy as np
import pytest

from fedsec.data.tabular import CANCER_CLIP, NUCLEUS_SCALES, load_breast_cancer, load_digits, scale_nuclei


def test_digits_are_the_1797_images_in_0_to_1() -> None:
    from sklearn.datasets import load_digits as reference

    dataset = load_digits(test_fraction=0.2, seed=1)
    assert dataset.x.shape == (1438, 64)
    assert dataset.x_test.shape == (359, 64)
    assert dataset.x.min() == 0.0
    assert dataset.x.max() == 1.0
    ours = np.concatenate([dataset.x, dataset.x_test])
    assert sorted(map(bytes, ours)) == sorted(map(bytes, (reference().data / 16).astype(np.float32)))
    shares = np.bincount(dataset.y_test) / np.bincount(np.concatenate([dataset.y, dataset.y_test]))
    assert np.abs(shares - 0.2).max() < 0.01


def test_the_same_seed_holds_out_the_same_records_and_another_one_others() -> None:
    assert load_digits(test_fraction=0.2, seed=1).fingerprint == load_digits(test_fraction=0.2, seed=1).fingerprint
    assert load_digits(test_fraction=0.2, seed=1).fingerprint != load_digits(test_fraction=0.2, seed=2).fingerprint


def test_digits_load_within_half_a_second_once_scikit_learn_is_imported() -> None:
    load_digits(test_fraction=0.2, seed=1)
    started = time.perf_counter()
    load_digits(test_fraction=0.2, seed=1)
    assert time.perf_counter() - started < 0.5


def test_breast_cancer_is_scaled_to_order_one_and_bounded() -> None:
    dataset = load_breast_cancer(test_fraction=0.25, seed=1)
    assert dataset.class_names == ("malignant", "benign")
    assert len(dataset.y) + len(dataset.y_test) == 569
    assert dataset.input_shape == (30,)
    assert np.abs(dataset.x).max() <= CANCER_CLIP
    assert np.abs(dataset.x.mean(axis=0)).max() < 0.6
    assert dataset.x.std(axis=0).min() > 0.5
    assert dataset.x.std(axis=0).max() < 1.6


def test_a_record_is_scaled_by_constants_alone() -> None:
    from sklearn.datasets import load_breast_cancer as reference

    values = reference().data
    whole = scale_nuclei(values)
    altered = values.copy()
    altered[1:] *= 100
    assert np.array_equal(scale_nuclei(altered)[0], whole[0])
    assert np.array_equal(scale_nuclei(values[7:8])[0], whole[7])


def test_the_scales_stand_in_scikit_learns_order() -> None:
    from sklearn.datasets import load_breast_cancer as reference

    names = [f"mean {scale.name}" for scale in NUCLEUS_SCALES]
    names += [f"{scale.name} error" for scale in NUCLEUS_SCALES]
    names += [f"worst {scale.name}" for scale in NUCLEUS_SCALES]
    assert names == list(reference().feature_names)
    assert scale_nuclei(np.full((1, 30), 15.0))[0, 0] == pytest.approx(0.0)
