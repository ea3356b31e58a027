"""Records check themselves, and JSON gives back exactly what went in."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.codec import canonical_json
from fedsec.errors import DecodeError
from fedsec.results import EpsilonReport, NamedClient, RejectedClient, RejectionReport, RoundRow, RunResult, ScreeningRow

shares = st.floats(0, 1) | st.just(math.nan)
numbers = st.floats()
epsilons = st.floats(min_value=0) | st.none()
counts = st.integers(0, 2**53)
texts = st.text(max_size=30)
rates = st.floats(0, 1) | st.none()
pairs = st.lists(st.tuples(texts, texts), max_size=3).map(tuple)
several = st.lists(texts, max_size=3).map(tuple)
rounds = st.integers(1, 10**6)

screenings = st.builds(
    ScreeningRow,
    rule=texts,
    mode=st.sampled_from(["open", "sketch"]),
    scores=st.dictionaries(texts, st.floats(allow_nan=False), max_size=3),
    rejected=pairs,
    quarantined=several,
    events=pairs,
    suspects=counts,
    facts=st.dictionaries(texts, numbers, max_size=3),
    failed=texts,
    aggregate_error=st.floats(min_value=0) | st.none(),
    honest=counts | st.none(),
)
rejections = st.builds(
    RejectionReport,
    precision=rates,
    recall=rates,
    auc=rates,
    honest_rate=rates,
    worst_honest_rate=rates,
    honest_rate_by_skew_decile=st.just(()) | st.lists(rates, min_size=10, max_size=10).map(tuple),
    rounds_to_detection=st.floats(1, 1e6) | st.none(),
    rounds_to_quarantine=st.floats(1, 1e6) | st.none(),
    undetected=counts | st.none(),
    provable_named_share=rates,
    false_named=counts | st.none(),
    from_round=rounds,
    rejected=st.lists(
        st.builds(
            RejectedClient,
            client_id=texts,
            rounds=rounds,
            first_round=rounds,
            reasons=several,
            attacker=st.booleans() | st.none(),
            evidence=texts,
        ),
        max_size=2,
    ).map(tuple),
    named=st.lists(st.builds(NamedClient, client_id=texts, round=rounds, reason=texts, evidence=texts), max_size=2).map(tuple),
    attackers=several,
    attack=texts,
    attack_success=rates,
    accuracy_undefended=shares | st.none(),
    accuracy_no_attack=shares | st.none(),
)


def rows(server_round):
    return st.builds(
        RoundRow,
        server_round=server_round,
        accuracy=shares,
        loss=numbers,
        recall=st.lists(shares | st.none(), max_size=3).map(tuple),
        epsilon_prv=epsilons,
        epsilon_rdp=epsilons,
        num_selected=counts,
        num_valid=counts,
        num_dropped=counts,
        rejected=st.lists(st.tuples(texts, texts), max_size=3).map(tuple),
        update_norm=numbers,
        seconds=numbers,
        bytes_up=counts,
        bytes_down=counts,
        site_accuracy=st.none() | st.dictionaries(texts, shares, max_size=3),
        screening=st.none() | screenings,
    )


reports = st.builds(
    EpsilonReport,
    prv=st.floats(min_value=0),
    rdp=st.floats(min_value=0),
    delta=st.none() | st.floats(0, 0.999),
    unit=texts,
    relation=texts,
    noise_multiplier=numbers,
    statement=texts,
)


def same(left, right):
    """Equality that holds NaN equal to itself: through the one spelling that JSON has for it."""
    return json.dumps(left.to_json()) == json.dumps(right.to_json())


@settings(max_examples=50, deadline=None)
@given(row=rows(st.integers(1, 10**6)))
def test_rounds_survive_strict_json(row):
    text = json.dumps(row.to_json(), allow_nan=False)
    assert same(RoundRow.from_json(json.loads(text)), row)


@settings(max_examples=50, deadline=None)
@given(report=reports)
def test_epsilon_survives_strict_json(report):
    text = json.dumps(report.to_json(), allow_nan=False)
    assert EpsilonReport.from_json(json.loads(text)) == report or math.isnan(report.noise_multiplier)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), report=reports, count=st.integers(0, 3), classes=st.integers(0, 2))
def test_results_survive_strict_json(make_result, data, report, count, classes):
    some = data.draw(st.tuples(*(rows(st.just(number + 1)) for number in range(count))))
    fitting = tuple(dataclasses.replace(row, recall=()) for row in some)
    names = tuple(data.draw(texts) for _ in range(classes))
    result = make_result(
        rows=fitting,
        epsilon=report,
        class_names=names,
        recall=tuple(data.draw(shares | st.none()) for _ in names),
        accuracy=data.draw(shares),
        loss=data.draw(numbers),
        plan_name=data.draw(texts),
        personal_accuracy=data.draw(st.none() | st.dictionaries(texts, shares, max_size=2)),
        site_accuracy=data.draw(st.none() | st.dictionaries(texts, shares, max_size=2)),
        majority_accuracy=data.draw(st.none() | shares),
        stopped_early=data.draw(st.booleans()),
        rejection=data.draw(st.none() | rejections),
        versions=data.draw(st.dictionaries(texts, texts, max_size=2)),
    )
    text = json.dumps(result.to_json(), allow_nan=False)
    assert same(RunResult.from_json(json.loads(text)), result)
    canonical_json(result.to_json())  # and it can be hashed


def test_infinite_epsilon_is_spelled(make_result):
    written = make_result(2, private=False).to_json()
    assert written["epsilon"]["prv"] == "inf"
    assert RunResult.from_json(written).epsilon.prv == math.inf


def test_json_line_of_the_command_has_what_it_promises(make_result):
    written = make_result(3).to_json()
    assert {"accuracy", "recall", "epsilon", "rounds", "num_clients", "engine", "duration_s", "run_dir"} <= written.keys()
    assert {"prv", "rdp", "delta", "unit"} <= written["epsilon"].keys()
    assert written["rounds"] == 3


def test_numpy_numbers_become_plain_ones(make_row):
    row = make_row(np.int64(3), accuracy=np.float32(0.5), recall=(np.float64(0.25),), num_valid=np.int32(7))
    written = json.loads(json.dumps(row.to_json()))
    assert (written["server_round"], written["accuracy"], written["recall"], written["num_valid"]) == (3, 0.5, [0.25], 7)


def test_path_that_is_no_text_does_not_stop_a_result(make_result):
    json.dumps(make_result(1, run_dir="runs/\udcff").to_json(), ensure_ascii=False).encode("utf-8")


@pytest.mark.parametrize(
    "changes",
    [
        {"server_round": 0},
        {"accuracy": 1.5},
        {"accuracy": -0.1},
        {"accuracy": math.inf},
        {"recall": (2.0,)},
        {"epsilon_prv": math.nan},
        {"epsilon_rdp": -1.0},
        {"num_valid": -1},
        {"bytes_up": -1},
        {"site_accuracy": {"a": 7.0}},
    ],
)
def test_round_refuses_impossible_numbers(make_row, changes):
    with pytest.raises(ValueError):
        make_row(**changes)


def test_nan_accuracy_of_a_diverged_model_is_a_result(make_row):
    row = make_row(accuracy=math.nan, loss=math.inf)
    assert row.to_json()["accuracy"] == "nan"
    assert math.isnan(RoundRow.from_json(row.to_json()).accuracy)


def test_result_refuses_rows_that_are_not_its_rounds(make_row, make_result):
    for rows, rounds in (((make_row(1),), 2), ((make_row(2),), 1), ((make_row(2), make_row(1)), 2)):
        with pytest.raises(ValueError, match="rounds need one row each"):
            make_result(rows=rows, rounds=rounds)


def test_result_refuses_recall_of_another_number_of_classes(make_row, make_result):
    with pytest.raises(ValueError, match="recall"):
        make_result(1, recall=(0.5,))
    with pytest.raises(ValueError, match="recall"):
        make_result(rows=(make_row(1, recall=(0.5,)),))


def corruptions():
    """(path into the JSON, value to put there; ... removes the key)."""
    return [
        (("format",), "fedsec/result/v0"),
        (("format",), ...),
        (("rounds",), 2.0),
        (("rounds",), True),
        (("rounds",), 7),
        (("accuracy",), "high"),
        (("accuracy",), None),
        (("accuracy",), True),
        (("accuracy",), float("inf")),
        (("accuracy",), 10**400),
        (("accuracy",), 3),
        (("loss",), []),
        (("stopped_early",), 0),
        (("engine",), 3),
        (("recall",), {}),
        (("class_names",), [1, 2, 3]),
        (("versions",), []),
        (("versions",), {"a": 1}),
        (("site_accuracy",), [0.5]),
        (("epsilon",), None),
        (("epsilon", "prv"), "nan"),
        (("epsilon", "prv"), -1),
        (("epsilon", "delta"), 1),
        (("epsilon", "unit"), ...),
        (("epsilon", "more"), 1),
        (("rows",), {}),
        (("rows", 0, "server_round"), 2),
        (("rows", 0, "num_valid"), True),
        (("rows", 0, "num_valid"), 18.0),
        (("rows", 0, "rejected", 0), ["client-7", "why"]),
        (("rows", 0, "rejected", 0, "reason"), ...),
        (("rows", 0, "unknown"), 1),
        (("rows", 0), 5),
        (("rows", 0, "screening"), ...),
        (("rows", 0, "screening"), {}),
        (("rows", 0, "screening"), []),
        (("rejection",), ...),
        (("rejection",), {}),
        (("rejection",), {"precision": 1.0}),
        (("extra",), 1),
    ]


@pytest.mark.parametrize(("path", "value"), corruptions(), ids=str)
def test_strict_reading_refuses(make_result, path, value):
    written = json.loads(json.dumps(make_result(2).to_json()))
    place = written
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    with pytest.raises(DecodeError):
        RunResult.from_json(written)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("rows", 0, "screening", "mode"), "blind"),
        (("rows", 0, "screening", "scores"), {"a": "nan"}),
        (("rows", 0, "screening", "scores"), {"a": None}),
        (("rows", 0, "screening", "rejected", 0), {"client_id": "a"}),
        (("rows", 0, "screening", "events", 0), {"client_id": "a", "reason": "b"}),
        (("rows", 0, "screening", "suspects"), None),
        (("rows", 0, "screening", "honest"), 1.0),
        (("rows", 0, "screening", "more"), 1),
        (("rejection", "precision"), 2.0),
        (("rejection", "recall"), "nan"),
        (("rejection", "honest_rate_by_skew_decile"), [0.5]),
        (("rejection", "from_round"), 0),
        (("rejection", "from_round"), None),
        (("rejection", "rejected", 0, "rounds"), 0),
        (("rejection", "rejected", 0, "attacker"), 1),
        (("rejection", "rejected", 0, "evidence"), ...),
        (("rejection", "named", 0, "round"), 0),
        (("rejection", "named", 0, "more"), 0),
    ],
    ids=str,
)
def test_strict_reading_of_rejection_refuses(make_row, make_result, path, value):
    screened = ScreeningRow(rule="screening", mode="open", scores={"a": 2.0}, rejected=(("a", "far"),), events=(("a", "quarantined"),))
    rejected = RejectedClient(client_id="a", rounds=1, first_round=1, reasons=("far",), attacker=True)
    report = RejectionReport(rejected=(rejected,), named=(NamedClient(client_id="a", round=1, reason="lied"),))
    written = json.loads(json.dumps(make_result(rows=(make_row(1, screening=screened),), rejection=report).to_json()))
    assert RunResult.from_json(written).rejection == report
    place = written
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    with pytest.raises(DecodeError):
        RunResult.from_json(written)


@pytest.mark.parametrize("value", [None, [], "result", 3])
def test_what_is_no_object_is_refused(value):
    for record in (RunResult, RoundRow, EpsilonReport, ScreeningRow, RejectionReport, RejectedClient, NamedClient):
        with pytest.raises(DecodeError):
            record.from_json(value)


def test_error_names_the_place(make_result):
    written = make_result(2).to_json()
    written["rows"][1]["loss"] = []
    with pytest.raises(DecodeError, match=r"result\.rows\[1\]\.loss is not a number"):
        RunResult.from_json(written)
