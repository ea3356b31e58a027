"""The lab trains as torch does, attacks and judges with the project's own code, goes on where it was stopped, and its page shows its results."""

import csv
import json

import numpy as np
import pytest
import torch

from experiments.byzantine import flanders, run, tables
from experiments.byzantine.clients import Clients
from experiments.byzantine.flanders import Scene
from experiments.byzantine.grid import FLANDERS_BEST, FLANDERS_COLUMNS, PARTS, WORST_OVER, runs_of
from experiments.byzantine.lab import run as run_lab
from experiments.byzantine.rows import Rows, read_results
from experiments.byzantine.server import aggregate_round
from experiments.byzantine.settings import Settings
from experiments.seeded_runs import student_interval
from fedsec.data.base import Dataset
from fedsec.data.federated import FederatedData
from fedsec.errors import StorageError
from fedsec.models.factory import build_model
from fedsec.plan.sections import ModelSection

SIDE, CLASSES = 6, 4


def small(**changes):
    base = {
        "part": "n17", "rule": "mean", "mode": "open", "attack": "none", "seed": 1, "num_clients": 9, "num_byzantine": 2, "alpha": 1.0, "rounds": 12,
        "steps": 2, "batch_size": 8, "learning_rate": 0.3, "hidden": (12,), "tail": 3, "sketch_rows": 64, "root_examples": 40,
    }  # fmt: skip
    return Settings(**{**base, **changes})


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(5)
    centres = generator.normal(size=(CLASSES, SIDE * SIDE))

    def records(count):
        y = generator.integers(0, CLASSES, count)
        x = centres[y] + 0.8 * generator.normal(size=(count, SIDE * SIDE))
        return x.reshape(count, SIDE, SIDE).astype(np.float32), y.astype(np.int64)

    (x, y), (x_test, y_test) = records(900), records(300)
    names = tuple(str(label) for label in range(CLASSES))
    dataset = Dataset(name="blobs", x=x, y=y, x_test=x_test, y_test=y_test, num_classes=CLASSES, class_names=names)
    parts = tuple(np.array_split(generator.permutation(900), 9))
    return FederatedData(dataset=dataset, train_parts=parts, test_parts=tuple(np.array_split(np.arange(300), 9)))


def test_stacked_training_is_torchs_own_sgd(data):
    clients = Clients(data, hidden=(12, 5), seed=3)
    records = [data.train_parts[0], data.train_parts[4]]
    flipped = np.array([False, True])
    sent = clients.train(
        clients.first_weights, records, steps=3, batch_size=8, learning_rate=0.3, generator=np.random.default_rng(9), flipped=flipped
    )
    drawn = np.stack([generator.choice(own, size=(3, 8)) for generator in [np.random.default_rng(9)] for own in records], axis=1)
    for place in range(2):
        model = build_model(ModelSection(name="mlp", hidden=(12, 5)), input_shape=(SIDE, SIDE), num_classes=CLASSES, seed=3)
        before = torch.cat([parameter.detach().reshape(-1).clone() for parameter in model.parameters()])
        optimiser = torch.optim.SGD(model.parameters(), lr=0.3)
        for step in range(3):
            rows = drawn[step, place]
            labels = torch.from_numpy(data.dataset.y[rows])
            labels = CLASSES - 1 - labels if flipped[place] else labels
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(model(torch.from_numpy(data.dataset.x[rows])), labels).backward()
            optimiser.step()
        after = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
        assert np.allclose(sent[place], (after - before).numpy(), atol=2e-6)


def test_accuracy_is_that_of_the_model(data):
    clients = Clients(data, hidden=(12,), seed=3)
    model = build_model(ModelSection(name="mlp", hidden=(12,)), input_shape=(SIDE, SIDE), num_classes=CLASSES, seed=3)
    right = (model(torch.from_numpy(data.dataset.x_test.copy())).argmax(dim=1).numpy() == data.dataset.y_test).mean()
    assert clients.accuracy(clients.first_weights) == pytest.approx(right)


@pytest.mark.parametrize("attack", ["none", "optimised-alie", "optimised-ipm", "mimic", "label-flip", "fang", "min-max", *flanders.NAMES])
@pytest.mark.parametrize(("rule", "mode"), [("arc-nnm-geometric-median", "open"), ("group-filter", "sketch"), ("filter", "sketch")])
def test_every_attack_runs_against_the_defaults(data, attack, rule, mode):
    row = run_lab(small(rule=rule, mode=mode, attack=attack, rounds=5), data)
    assert 0 <= row["accuracy"] <= 1
    assert (row["recall"] is None) == (attack == "none")


@pytest.mark.parametrize("rule", ["median", "krum", "fltrust", "multi-krum", "geometric-median"])
def test_every_kind_of_rule_learns_and_the_same_settings_give_the_same_row(data, rule):
    settings = small(rule=rule, attack="optimised-alie" if rule == "fltrust" else "none")
    first, second = run_lab(settings, data), run_lab(settings, data)
    assert first["accuracy"] > 0.8
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


def test_the_attack_ruins_the_mean_and_not_the_defended(data):
    attack = {"attack": "optimised-ipm", "rounds": 20}
    assert run_lab(small(**attack), data)["accuracy"] < 0.5
    for rule, mode in (("arc-nnm-geometric-median", "open"), ("group-filter", "sketch"), ("group-filter", "open")):
        assert run_lab(small(rule=rule, mode=mode, **attack), data)["accuracy"] > 0.8


def test_sketches_sum_what_is_accepted_to_the_grid():
    generator = np.random.default_rng(2)
    updates = generator.normal(size=(9, 600)).astype(np.float32)
    updates[3] += 30.0
    outcome = aggregate_round(small(rule="group-filter", mode="sketch"), updates, root=None, generator=generator)
    assert np.flatnonzero(outcome.flagged).tolist() == [3]
    expected = updates[~outcome.flagged].sum(axis=0, dtype=np.float64) / (8 * 8)
    assert np.allclose(outcome.step, expected, atol=1e-4)
    assert not np.array_equal(outcome.step, expected)  # it went over the grid


def test_disguised_colluders_are_no_twins_and_push_as_before(data):
    from experiments.byzantine.crew import Crew

    updates = np.random.default_rng(1).normal(size=(9, 300)).astype(np.float32)
    attacking = np.arange(9) < 2
    sent = {}
    for disguised in (False, True):
        crew = Crew(
            settings=small(attack="ipm", disguised=disguised),
            attacking=attacking,
            layer_sizes=[300],
            generator=np.random.default_rng(4),
        )
        sent[disguised] = crew.send(updates, weights=np.zeros(300), server_round=2, root=None)
    assert np.array_equal(sent[False][0], sent[False][1])
    typical = np.median(np.linalg.norm(updates[2:] - updates[2:].mean(axis=0), axis=1))
    added = np.linalg.norm(sent[True][:2] - sent[False][:2], axis=1)
    assert np.allclose(added, typical, rtol=0.2)
    assert np.array_equal(sent[True][2:], updates[2:])


def scene(seed=0, **changes):
    generator = np.random.default_rng(seed)
    base = {
        "weights": generator.normal(size=40), "differences": (0.1 * generator.normal(size=(20, 40))).astype(np.float32),
        "attacking": np.arange(20) < 4, "start": generator.normal(size=40), "layer_sizes": [30, 10], "generator": generator,
    }  # fmt: skip
    return Scene(**{**base, **changes})


def test_flanders_lie_is_mean_less_the_root_of_the_deviation():
    seen = scene()
    models = seen.weights + seen.differences.astype(np.float64)
    expected = models.mean(axis=0) - flanders.lie_factor(20, 4) * np.sqrt(models.std(axis=0))
    assert np.allclose(seen.weights + flanders.craft("flanders-lie", seen), expected)


def test_flanders_opt_is_what_krum_picks_or_a_vanishing_push():
    for seed in range(5):
        seen = scene(seed)
        crafted = seen.weights + flanders.craft("flanders-opt", seen)[0]
        push = np.abs(crafted - seen.start).max()
        assert np.allclose(crafted, seen.start - push * np.sign(seen.start))
        models = np.vstack([np.tile(crafted, (4, 1)), seen.weights + seen.differences[4:]])
        distances = ((models[:, None] - models[None]) ** 2).sum(axis=2)
        scores = np.sort(distances, axis=1)[:, 1 : 20 - 4 - 2 + 1].sum(axis=1)
        assert scores.argmin() < 4 or push <= flanders.SMALLEST_PUSH


def test_flanders_gauss_has_deviation_ten():
    added = flanders.craft("flanders-gauss", scene(differences=np.zeros((20, 40), dtype=np.float32)))
    assert 8 < added.std() < 12


def test_settings_are_told_apart_by_their_digest():
    assert small().digest() == small().digest()
    assert len({small().digest(), small(seed=2).digest(), small(disguised=True).digest(), small(hidden=(13,)).digest()}) == 4
    for part in PARTS:
        digests = [settings.digest() for settings in runs_of(part, 3)]
        assert len(set(digests)) == len(digests)


def test_rows_survive_a_crash_in_the_middle_of_a_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = Rows(path)
    rows.add(small(), {"accuracy": 0.5})
    rows.add(small(seed=2), {"accuracy": 0.6})
    path.write_text(path.read_text() + '{"digest": "cut o')
    again = Rows(path)
    again.add(small(seed=3), {"accuracy": 0.7})
    assert [Rows(path).find(small(seed=seed))["result"]["accuracy"] for seed in (1, 2, 3)] == [0.5, 0.6, 0.7]
    assert Rows(path).find(small(seed=4)) is None
    path.write_text("no row\n" + path.read_text())
    with pytest.raises(StorageError, match="no row"):
        Rows(path)


def test_a_grid_that_was_stopped_goes_on(tmp_path, monkeypatch):
    started = []

    def fake(settings):
        started.append(settings.seed)
        if len(started) == 2:
            raise KeyboardInterrupt
        return {"accuracy": 0.5, "seconds": 0.1}

    monkeypatch.setattr(run, "execute", fake)
    grid = [small(seed=seed) for seed in (1, 2, 3)]
    with pytest.raises(KeyboardInterrupt):
        run.run_all(grid, Rows(tmp_path / "rows.jsonl"), jobs=1)
    run.run_all(grid, Rows(tmp_path / "rows.jsonl"), jobs=1)
    assert started == [1, 2, 2, 3]


@pytest.fixture(scope="module")
def rows():
    if not run.RESULTS.exists():
        pytest.skip("the grid has not been run to its end: docs/progress.md")
    return read_results(run.RESULTS)


def test_results_are_those_of_the_grid(rows):
    wanted = {settings.digest(): settings.to_json() for part in PARTS for settings in runs_of(part, run.SEEDS)}
    assert {row["digest"]: {"draws": 1} | row["settings"] for row in rows} == wanted


def test_page_and_csv_show_the_results(rows):
    summary = tables.summary_of(rows)
    assert tables.page(summary) in tables.PAGE.read_text(encoding="utf-8")
    with (run.HERE / "results.csv").open(encoding="utf-8") as stream:
        lines = [line for line in csv.DictReader(stream) if (line["part"], line["what"]) == ("n17", "worst")]
    assert [float(line["mean"]) for line in lines] == pytest.approx([line["worst"]["mean"] for line in summary["n17"]], abs=1e-6)


def test_the_worst_case_is_taken_in_each_seed(rows):
    line = next(line for line in tables.summary_of(rows)["n17"] if (line["rule"], line["mode"]) == ("fltrust", "open"))
    by_seed = [
        min(
            row["result"]["accuracy"]
            for row in rows
            if (row["settings"]["part"], row["settings"]["rule"], row["settings"]["seed"]) == ("n17", "fltrust", seed)
            and row["settings"]["attack"] in WORST_OVER
        )
        for seed in (1, 2, 3)
    ]
    assert line["worst"]["values"] == by_seed
    assert line["worst"]["half_width"] == student_interval(by_seed).half_width


def test_the_figures_that_were_asked_for_are_reached(rows):
    summary = tables.summary_of(rows)
    worst = {(line["rule"], line["mode"]): line["worst"]["mean"] for line in summary["n17"]}
    assert worst["arc-nnm-geometric-median", "open"] >= 0.78
    assert worst["group-filter", "sketch"] >= 0.76
    assert worst["fltrust", "open"] >= 0.86
    for line in summary["flanders"]:
        if line["rule"] != "mean":
            for column in FLANDERS_COLUMNS:
                assert line["columns"][column]["mean"] >= FLANDERS_BEST[column] - 0.01, (line["name"], column)
    for line in summary["skew"]:
        assert line["0.5"]["mean"] <= 0.02, line["name"]


def test_the_command_line_refuses_nonsense_and_prints_json(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["run", "--seeds", "0"])
    with pytest.raises(SystemExit):
        run.main()
    capsys.readouterr()
    if not run.RESULTS.exists():
        pytest.skip("the grid has not been run to its end: docs/progress.md")
    monkeypatch.setattr(run, "HERE", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("<!-- results -->\n\n<!-- /results -->\n")
    monkeypatch.setattr(tables, "PAGE", page)
    monkeypatch.setattr("sys.argv", ["run", "--tables", "--json"])
    run.main()
    assert set(json.loads(capsys.readouterr().out)) == set(PARTS)
    assert (tmp_path / "results.png").stat().st_size > 10_000
    assert "n = 17" in page.read_text()
