"""Pictures are real, the same every time, and stand whatever a run holds."""

import csv
import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from fedsec.errors import StorageError
from fedsec.report import plots

HOSTILE = ("$\\frac{$", "\x1b[2J\u202e", "=cmd()", "x" * 400, "")


@pytest.fixture(autouse=True)
def _no_warning_from_matplotlib():
    """A layout that does not fit, or a letter that the font lacks, is only a warning there: here it fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def check_picture(path):
    """Opens, is at README size and 150 dpi, carries no stamps, and something is drawn on it; grey levels [height, width]."""
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert 600 <= image.width <= 2400
        assert 200 <= image.height <= 1600
        assert round(image.info["dpi"][0]) == 150
        assert set(image.info) <= {"dpi"}
        grey = np.asarray(image.convert("L")).copy()
    assert 0.005 < (grey < 250).mean() < 0.9
    return grey


def read_csv(path):
    with path.with_suffix(".csv").open(newline="", encoding="utf-8") as handle:
        return list(csv.reader(handle))


def border_is_white(grey):
    """Nothing is clipped: what runs over an edge would colour it."""
    edges = [grey[0], grey[-1], grey[:, 0], grey[:, -1]]
    return all((edge > 250).all() for edge in edges)


def draw_all(folder, result, histogram):
    plots.plot_accuracy_and_epsilon(result, folder / "curves.png", reference_accuracy=0.95)
    plots.plot_label_skew(histogram, result.class_names, folder / "skew.png")
    plots.plot_recall(result, folder / "recall.png")
    plots.plot_overview(result, histogram, folder / "overview.png", reference_accuracy=0.95)
    return [folder / f"{name}.png" for name in ("curves", "skew", "recall", "overview")]


def test_pictures_of_a_usual_run_open_and_nothing_is_clipped(tmp_path, make_result, histogram):
    for path in draw_all(tmp_path, make_result(20), histogram):
        assert border_is_white(check_picture(path)), path.name


def test_same_run_gives_the_same_bytes_whatever_the_users_settings(tmp_path, make_result, histogram):
    import matplotlib as mpl

    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    first = draw_all(tmp_path / "one", make_result(5), histogram)
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "savefig.dpi": 40, "text.parse_math": True}):
        before = dict(mpl.rcParams)
        second = draw_all(tmp_path / "two", make_result(5), histogram)
        assert dict(mpl.rcParams) == before
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes()
        assert one.with_suffix(".csv").read_bytes() == two.with_suffix(".csv").read_bytes()


def test_data_beside_the_curves(tmp_path, make_result):
    result = make_result(3)
    plots.plot_accuracy_and_epsilon(result, tmp_path / "curves.png", reference_accuracy=0.95)
    header, *rows = read_csv(tmp_path / "curves.png")
    assert header == ["server_round", "accuracy", "epsilon_prv", "epsilon_rdp", "majority_accuracy", "reference_accuracy"]
    assert [[float(cell) for cell in row] for row in rows] == [
        [row.server_round, row.accuracy, row.epsilon_prv, row.epsilon_rdp, 0.102, 0.95] for row in result.rows
    ]


def test_data_beside_label_skew_is_the_histogram(tmp_path, histogram):
    plots.plot_label_skew(histogram, ("zero", "one", "two"), tmp_path / "skew.png")
    header, *rows = read_csv(tmp_path / "skew.png")
    assert header == ["client", "zero", "one", "two"]
    assert np.array_equal(np.array(rows, dtype=int)[:, 1:], histogram)
    plots.plot_label_skew(histogram[:2], ("zero", "one", "two"), tmp_path / "named.png", client_names=("Cleveland", "=Hungary"))
    assert [row[0] for row in read_csv(tmp_path / "named.png")] == ["client", "Cleveland", "'=Hungary"]


def test_data_beside_recall_marks_the_worst_class(tmp_path, make_result):
    plots.plot_recall(make_result(1), tmp_path / "recall.png")
    assert read_csv(tmp_path / "recall.png") == [["class", "recall", "worst"], ["zero", "0.9", "0"], ["one", "", "0"], ["two", "0.5", "1"]]


def test_data_beside_the_overview_has_every_number(tmp_path, make_result, histogram):
    result = make_result(4)
    plots.plot_overview(result, histogram, tmp_path / "overview.png")
    header, *rows = read_csv(tmp_path / "overview.png")
    assert header == ["panel", "series", "x", "value"]
    assert len(rows) == 2 * 4 + 2 + histogram.size + 3
    assert ["label skew", "class two", "20", str(histogram[19, 2])] in rows
    assert ["curves", "accuracy", "4", repr(result.rows[3].accuracy)] in rows


def test_label_skew_says_that_the_counts_are_private(histogram):
    assert "simulation only: these counts are private" in plots.SKEW_SUBTITLE


@pytest.mark.parametrize(("clients", "classes"), [(1, 1), (4, 2), (61, 30), (1000, 100)])
def test_label_skew_of_any_size(tmp_path, clients, classes):
    counts = np.random.default_rng(0).poisson(3, size=(clients, classes))
    names = [f"class {index}" for index in range(classes)]
    plots.plot_label_skew(counts, names, tmp_path / "skew.png", client_names=[f"client {index}" for index in range(clients)])
    assert border_is_white(check_picture(tmp_path / "skew.png"))


@pytest.mark.parametrize(
    "counts",
    [np.zeros((0, 3), dtype=int), np.zeros((3, 2), dtype=int), np.zeros(3, dtype=int), np.array([[1, 2, -1]]), np.array([[0.5, 1.0, 2.0]])],
    ids=["no client", "other classes", "one axis", "negative", "fractions"],
)
def test_what_is_no_histogram_is_refused(tmp_path, make_result, counts):
    with pytest.raises(ValueError, match="histogram"):
        plots.plot_label_skew(counts, ("zero", "one", "two"), tmp_path / "skew.png")
    with pytest.raises(ValueError, match="histogram"):
        plots.plot_overview(make_result(1), counts, tmp_path / "overview.png")
    assert list(tmp_path.iterdir()) == []


def test_client_names_must_fit(tmp_path, histogram):
    with pytest.raises(ValueError, match="client names"):
        plots.plot_label_skew(histogram, ("zero", "one", "two"), tmp_path / "skew.png", client_names=("only one",))


def test_histogram_of_nothing_but_zeros(tmp_path):
    plots.plot_label_skew(np.zeros((3, 2), dtype=int), ("a", "b"), tmp_path / "skew.png")
    check_picture(tmp_path / "skew.png")


@pytest.mark.parametrize(("count", "private"), [(0, True), (0, False), (1, True), (300, True), (300, False)])
def test_runs_of_any_length_with_and_without_privacy(tmp_path, make_result, count, private):
    plots.plot_accuracy_and_epsilon(make_result(count, private=private), tmp_path / "curves.png")
    assert border_is_white(check_picture(tmp_path / "curves.png"))
    assert len(read_csv(tmp_path / "curves.png")) == 1 + count


def test_diverged_run(tmp_path, make_row, make_result):
    rows = tuple(
        make_row(number, accuracy=math.nan, loss=math.inf, epsilon_prv=None if number == 2 else math.inf, recall=()) for number in (1, 2, 3)
    )
    result = make_result(rows=rows, accuracy=math.nan, recall=(math.nan, None, math.nan), majority_accuracy=math.nan)
    for path in draw_all(tmp_path, result, np.ones((2, 3), dtype=int)):
        check_picture(path)


def test_one_class_and_no_recall(tmp_path, make_row, make_result):
    rows = (make_row(1, recall=()),)
    for recall in ((1.0,), ()):
        result = make_result(rows=rows, class_names=("only",), recall=recall)
        plots.plot_recall(result, tmp_path / "recall.png")
        plots.plot_overview(result, np.ones((2, 1), dtype=int), tmp_path / "overview.png")
        check_picture(tmp_path / "recall.png")
        check_picture(tmp_path / "overview.png")


def test_hostile_names_are_drawn_as_text(tmp_path, make_row, make_result):
    result = make_result(
        rows=(make_row(1, recall=()),),
        class_names=HOSTILE,
        recall=(0.1, 0.2, 0.3, 0.4, 0.5),
        plan_name=HOSTILE[0] + HOSTILE[3],
        num_clients=4,
    )
    for path in draw_all(tmp_path, result, np.ones((5, 5), dtype=int)):
        assert border_is_white(check_picture(path)), path.name
    plots.plot_label_skew(np.ones((5, 5), dtype=int), HOSTILE, tmp_path / "skew.png", client_names=HOSTILE)
    assert border_is_white(check_picture(tmp_path / "skew.png"))


def test_recall_of_many_classes_shows_the_lowest(tmp_path, make_row, make_result):
    recall = tuple(0.99 - 0.01 * (index % 90) for index in range(200))
    result = make_result(rows=(make_row(1, recall=()),), class_names=tuple(map(str, range(200))), recall=recall)
    plots.plot_recall(result, tmp_path / "recall.png")
    assert border_is_white(check_picture(tmp_path / "recall.png"))
    _, *rows = read_csv(tmp_path / "recall.png")
    assert len(rows) == 200
    assert [row[0] for row in rows if row[2] == "1"] == ["89"]


def test_overview_without_a_histogram_leaves_the_panel_out(tmp_path, make_result):
    plots.plot_overview(make_result(3), None, tmp_path / "overview.png")
    assert border_is_white(check_picture(tmp_path / "overview.png"))
    assert not any(row[0] == "label skew" for row in read_csv(tmp_path / "overview.png"))


def test_absent_folder_is_a_storage_error(tmp_path, make_result):
    with pytest.raises(StorageError):
        plots.plot_recall(make_result(1), tmp_path / "none" / "recall.png")


def test_nothing_imports_matplotlib_before_the_first_picture():
    code = "import sys; import fedsec.report.plots, fedsec.report.progress, fedsec.report.tables; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
