"""Fed-Heart-Disease: FLamby's columns, rows and split; public scales; shipped files that are the published ones."""

import hashlib
from importlib import resources

import numpy as np
import pytest

from fedsec.data import heart
from fedsec.data.heart import CLINICAL_SCALES, CLIP, FEATURE_NAMES, HOSPITALS, SHA256, load_heart_disease, parse_rows, scale_features
from fedsec.errors import DataError

ROW = "63.0,1.0,1.0,145.0,233.0,1.0,2.0,150.0,0.0,2.3,3.0,0.0,6.0,0"


def test_rows_and_split_are_those_of_flamby_in_every_hospital() -> None:
    """Train/test counts of FLamby's README: 199/104, 172/89, 30/16, 85/45; 740 records in all."""
    dataset = load_heart_disease()
    assert dataset.groups is not None
    assert dataset.groups_test is not None
    assert dataset.group_names == ("cleveland", "hungarian", "switzerland", "va")
    assert np.bincount(dataset.groups).tolist() == [199, 172, 30, 85]
    assert np.bincount(dataset.groups_test).tolist() == [104, 89, 16, 45]
    assert dataset.input_shape == (13,) == (len(FEATURE_NAMES),)


def test_the_split_is_stratified_where_flamby_stratifies() -> None:
    """Healthy and ill test patients; Switzerland has one healthy patient in all and is split without regard to the label."""
    dataset = load_heart_disease()
    counts = [np.bincount(dataset.y_test[dataset.groups_test == site], minlength=2).tolist() for site in range(4)]
    assert counts == [[56, 48], [56, 33], [1, 15], [10, 35]]


def test_the_split_is_the_one_that_flambys_recipe_gives() -> None:
    """The files read anew in a few lines: the same test patients, in file order, told by their ages."""
    from sklearn.model_selection import train_test_split

    dataset = load_heart_disease()
    for site, hospital in enumerate(HOSPITALS):
        text = (resources.files("fedsec.data") / "heart_disease" / f"processed.{hospital}.data").read_text()
        fields = [np.delete(np.array(line.split(",")), [10, 11, 12]) for line in text.split()]
        complete = [row.astype(float) for row in fields if "?" not in row]
        labels = np.array([row[-1] > 0 for row in complete])
        stratify = labels if min(labels.sum(), (~labels).sum()) > 2 else None
        _, test = train_test_split(
            np.arange(len(complete)), test_size=1 - 0.66, train_size=0.66, random_state=43, shuffle=True, stratify=stratify
        )
        ages = np.array([row[0] for row in complete])[np.sort(test)]
        assert np.allclose(dataset.x_test[dataset.groups_test == site][:, 0] * 10 + 55, np.clip(ages, 25, 85), atol=1e-4)


def test_the_first_patient_of_cleveland_is_scaled_by_hand() -> None:
    features = scale_features(parse_rows(ROW, source="here"))
    by_hand = [0.8, 1.0, 0.75, 0.26, 1.0, 0.0, -1.0, 1.3, 0.0, 0.0, 0.0, 0.0, 1.0]
    assert features == pytest.approx(np.array([by_hand]), abs=1e-6)
    assert features.dtype == np.float32


def test_a_record_is_scaled_by_constants_alone() -> None:
    rows = parse_rows("\n".join([ROW, ROW.replace("63.0", "99"), ROW.replace("233.0", "600")]), source="here")
    assert np.array_equal(scale_features(rows)[:1], scale_features(rows[:1]))


def test_an_impossible_zero_is_read_as_not_recorded_and_extremes_are_bounded() -> None:
    zero = ROW.replace("145.0", "0").replace("233.0", "0")
    features = dict(zip(FEATURE_NAMES, scale_features(parse_rows(zero, source="here"))[0], strict=True))
    assert features["trestbps"] == 0.0
    assert features["chol"] == 0.0
    extreme = scale_features(parse_rows(ROW.replace("233.0", "1e9").replace("2.3", "-1e9"), source="here"))[0]
    assert np.abs(extreme).max() == CLIP
    assert np.abs(load_heart_disease().x).max() <= CLIP


def test_indicators_name_the_values_of_chest_pain_and_ecg() -> None:
    for pain in (1, 2, 3, 4):
        for ecg in (0, 1, 2):
            row = f"63,1,{pain},145,233,1,{ecg},150,0,2.3,3,0,6,0"
            features = scale_features(parse_rows(row, source="here"))[0, 8:]
            assert features.tolist() == [float(pain == 2), float(pain == 3), float(pain == 4), float(ecg == 1), float(ecg == 2)]


def test_rows_with_a_missing_value_are_left_out_unless_it_is_in_a_dropped_column() -> None:
    text = "\n".join([ROW, ROW.replace("233.0", "?"), ROW.replace("3.0,0.0,6.0", "?,?,?"), ""])
    assert len(parse_rows(text, source="here")) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "here holds no complete row"),
        ("?," * 13 + "0", "here holds no complete row"),
        (ROW + ",1", "here, line 1: 15 columns, expected 14"),
        (f"{ROW}\n1,2,3", "here, line 2: 3 columns"),
        (ROW.replace("63.0", "old"), "here, line 1: a value is neither a number nor"),
        (ROW.replace("63.0", "nan"), "here, line 1: a value is not finite"),
        (ROW.replace("63.0", "1e999"), "here, line 1: a value is not finite"),
    ],
)
def test_a_file_of_another_form_is_refused_with_its_line(text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        parse_rows(text, source="here")


def test_every_scale_has_its_reason_and_its_column() -> None:
    assert [scale.column for scale in CLINICAL_SCALES] == [0, 1, 3, 4, 5, 7, 8, 9]
    assert all(scale.scale > 0 and scale.reason for scale in CLINICAL_SCALES)


def test_the_shipped_files_are_the_published_ones_with_attribution() -> None:
    folder = resources.files("fedsec.data") / "heart_disease"
    for hospital, pinned in SHA256.items():
        assert hashlib.sha256((folder / f"processed.{hospital}.data").read_bytes()).hexdigest() == pinned
    names = (folder / "heart-disease.names").read_bytes()
    assert hashlib.sha256(names).hexdigest() == "ec7ed5aa4ed8321097808f47b836301c2a0c36f3bb09c40b8b43b622363e6b61"
    attribution = (folder / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for word in ("CC BY 4.0", "data set 45", "Janosi", "Steinbrunn", "Pfisterer", "Detrano", "1988"):
        assert word in attribution


def test_an_altered_or_missing_shipped_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHA256, "va", "0" * 64)
    with pytest.raises(DataError, match=r"processed\.va\.data is not the file.*install fedsec again"):
        load_heart_disease()
    monkeypatch.setattr(heart, "HOSPITALS", ("atlantis",))
    with pytest.raises(DataError, match=r"processed\.atlantis\.data is missing from the package"):
        load_heart_disease()
