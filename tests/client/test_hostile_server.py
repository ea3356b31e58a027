"""Regressions of decision record 0005: a server that asks out of turn, and the paths beside the noised sum."""

import json
import math

import numpy as np
import pytest
from flwr.app import Context, RecordDict

from client.app import app
from client.localdata import _with_test_part
from client.settings import read_settings
from fedsec.clientstore.inspect import read_ledger
from fedsec.errors import ConfigError, DecodeError, FedsecError, PrivacyBudgetExceeded
from fedsec.flower import compat, records
from fedsec.flower.records import PeerError
from fedsec.plan.load import load_plan
from fedsec.privacy.ledger import Spend, authorise, next_entry
from fedsec.runfolder import prepare_run_folder
from fedsec.vectors import arrays_digest

SOURCE = """
import numpy as np
def base():
    x = np.zeros((2000, 4), np.float32)
    x[:, 0], x[:, 1] = 1, np.random.default_rng(0).random(2000)
    return x, np.zeros(2000, np.int64)
def without():
    x, y = base()
    return {"x": x, "y": y, "x_test": x[:50], "y_test": y[:50], "num_classes": 2}
def with_target():
    whole = without()
    return whole | {"x": np.vstack([whole["x"], [[0, 0, 1, 0]]]).astype(np.float32), "y": np.append(whole["y"], 1)}
def undeclared():
    x, y = base()
    return {"x": x, "y": y % 9, "x_test": x[:50], "y_test": y[:50]}
"""
PRIVATE = ["robust.rule=mean", "attack.name=none", "secagg.enabled=false", "privacy.noise_multiplier=60.0", "privacy.epsilon=1", "training.steps=1", "training.sample_rate=1.0", "training.batch_size=32",
           "training.learning_rate=1.0", "model.personal=['bias']"]  # fmt: skip
AFTER = load_plan(overrides=PRIVATE)
INSIDE = load_plan(overrides=[*PRIVATE, "model.personal_fit=dp"])
CRAFTED = {"weight": np.array([[50, 0, 50, 0], [-50, 0, -50, 0]], np.float32)}
GENTLE = {"weight": np.array([[3, 0, 0, 0], [-3, 0, 0, 0]], np.float32)}


@pytest.fixture(autouse=True)
def _identity(tmp_path, monkeypatch):
    (tmp_path / "hostilerecords.py").write_text(SOURCE)
    (tmp_path / "notlisted.py").write_text(
        "import pathlib\ndef make(shape, classes):\n    pathlib.Path(__file__).with_name('ran').touch()\n    raise ValueError\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with compat.task_identity(7):
        yield


def client(tmp_path, source="without", policy="", home="home"):
    settings = tmp_path / f"{home}-{source}.toml"
    settings.write_text(
        f'client_id = "a"\nhome = "{tmp_path / home}"\nsource = "hostilerecords:{source}"\nbatch_size = 32\n'
        f"[policy]\nepsilon_cap = 1.0\ndelta = 1e-3\n{policy}\n"
    )
    return Context(run_id=7, node_id=1, node_config={"fedsec-settings": str(settings)}, state=RecordDict(), run_config={})


def ask(context, server_round, plan, arrays, *, kind=records.TRAIN, sigma=60.0, **changes):
    fields = {
        "run_id": "r", "server_round": server_round, "plan_json": records.plan_to_canonical(plan), "noise_multiplier": sigma,
        "model_hash": arrays_digest(arrays), **changes,
    }  # fmt: skip
    message = records.make_request(records.RoundRequest(**fields), node_id=1, message_type=kind, arrays=records.arrays_to_record(arrays))
    compat.assign_message_id(message, "m")
    return app(message=message, context=context)


def test_a_personal_parameter_fitted_without_noise_never_enters_a_gradient(tmp_path):
    def released(source):
        context = client(tmp_path, source, home=source)
        try:
            ask(context, 0, AFTER, CRAFTED, kind=records.PERSONALISE)
            weight = records.read_update(ask(context, 1, INSIDE, GENTLE), sender="a")["weight"]
        except FedsecError:
            return 0.0  # refusing either request is a mend
        return float(weight[0, 0] - weight[1, 0])

    assert abs(released("with_target") - released("without")) < 8 * 2 * 60.0  # 21 deviations apart before the mend


@pytest.mark.parametrize("kind", [records.PERSONALISE, records.EVALUATE])
def test_code_that_the_operator_did_not_list_never_runs(tmp_path, kind):
    plan = load_plan(overrides=[*PRIVATE, "model.name=custom", "model.factory=notlisted:make", "federation.evaluate_clients=true"])
    with pytest.raises(ConfigError, match="does not run"):
        ask(client(tmp_path, policy="allow_evaluation = true"), 1, plan, GENTLE, kind=kind)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("attack", ["sign-flip", "label-flip", "nan-value", "backdoor"])
def test_a_server_cannot_turn_a_deployed_client_into_an_attacker(tmp_path, attack):
    plan = load_plan(overrides=[*PRIVATE, f"attack.name={attack}"])
    with pytest.raises(ConfigError, match="for simulations"):
        ask(client(tmp_path), 1, plan, GENTLE)
    assert not (tmp_path / "home").exists()  # refused before a ledger was founded


@pytest.mark.parametrize("line", ['allow_evaluation = "false"', 'allow_unprotected = "no"', "allow_unprotected = 1", "epsilon_cap = true"])
def test_a_policy_value_of_the_wrong_type_is_refused(tmp_path, line):
    settings = tmp_path / "s.toml"
    cap = "" if line.startswith("epsilon_cap") else "epsilon_cap = 1.0\n"
    settings.write_text(f'client_id = "a"\nhome = "/h"\nsource = "m:f"\n[policy]\n{cap}delta = 1e-3\n{line}\n')
    with pytest.raises(ConfigError):
        read_settings(settings)


def test_a_relative_home_is_refused(tmp_path):
    settings = tmp_path / "s.toml"
    settings.write_text('client_id = "a"\nhome = "store"\nsource = "m:f"\n[policy]\nepsilon_cap = 1.0\ndelta = 1e-3\n')
    with pytest.raises(ConfigError, match="home"):
        read_settings(settings)


def test_the_number_of_classes_is_declared_and_never_read_off_the_labels(tmp_path):
    plan = load_plan(overrides=PRIVATE[:-1])
    with pytest.raises(FedsecError) as caught:
        ask(client(tmp_path, "undeclared"), 1, plan, {"weight": np.zeros((9, 4), np.float32), "bias": np.zeros(9, np.float32)})
    assert "expected (" not in str(caught.value)


def test_one_more_record_moves_no_other_record_between_training_and_test_part_of_a_deployed_client():
    rng = np.random.default_rng(0)
    x, y = rng.random((500, 8), dtype=np.float32), rng.integers(0, 2, 500)

    def trained(x, y):
        return {row.tobytes() for row in _with_test_part({"x": x, "y": y, "num_classes": 2})["x"]}

    more = trained(np.vstack([rng.random((1, 8), dtype=np.float32), x]), np.append(0, y))
    assert len(more ^ trained(x, y)) <= 1


def test_an_import_error_of_the_clients_source_stays_with_the_client(tmp_path):
    (tmp_path / "badsource.py").write_text("float('Smith, Jane')\n")
    context = client(tmp_path)
    path = tmp_path / "home-without.toml"
    path.write_text(path.read_text().replace("hostilerecords:without", "badsource:load"))
    with pytest.raises(FedsecError) as caught:
        ask(context, 1, AFTER, GENTLE)
    assert "Jane" not in str(caught.value)


@pytest.mark.parametrize(
    "fields", [{"server_round": -1}, {"server_round": 2**63 - 1}, {"attempt": 0}, {"run_id": ""}, {"run_id": "x" * 129}]
)
def test_round_attempt_and_run_id_are_bounded_before_anything_is_charged(tmp_path, fields):
    with pytest.raises(DecodeError):
        ask(client(tmp_path), **{"server_round": 1, "plan": AFTER, "arrays": GENTLE, **fields})
    assert not (tmp_path / "home").exists() or read_ledger(tmp_path / "home") == ()


def test_personalising_needs_a_round_of_that_run_so_the_store_cannot_be_filled_for_nothing(tmp_path):
    with pytest.raises(FedsecError):
        ask(client(tmp_path), 1, AFTER, GENTLE, kind=records.PERSONALISE, run_id="never-trained")


def test_a_menu_of_mechanisms_chosen_after_each_answer_is_not_capped_by_prv():
    """First stage, then whichever of three second stages suits the first answer: delta at epsilon 3 is 1.6 times the stated one."""
    from datetime import UTC, datetime

    def spend(sigma, rate, steps):
        return Spend(mechanism="dp-sgd", noise_multiplier=sigma, sample_rate=rate, steps=steps, clip_norm=1.0)

    first = next_entry(
        [], spend(4.0, 1.0, 4), store_id="s", run_id="r", server_round=1, attempt=1, dataset_fingerprint="f", policy_digest="p",
        model_hash="m", now=datetime.now(UTC),
    )  # fmt: skip
    refused = 0
    for second in (spend(20.0, 1.0, 105), spend(0.3, 0.000294, 1), spend(0.4, 0.00198, 1)):
        try:
            authorise([first], second, epsilon_cap=3.0, delta=1e-5)
        except PrivacyBudgetExceeded:
            refused += 1
    assert refused >= 2


def test_a_clients_list_of_spends_cannot_stop_or_stall_the_server():
    from fedsec.flower.records import _read_segments

    for hostile in ([[1e-9, 1.0, 1]], [[0.01, 1.0, 1]], [[5 + i / 100, 0.01 + i / 1e4, 10] for i in range(60)]):
        with pytest.raises(PeerError):
            _read_segments(json.dumps(hostile), "evil", "train")


def test_epsilon_of_a_vanishing_rate_and_noise_is_a_number_or_infinite():
    from fedsec.privacy.accounting import Segment, epsilon_prv, epsilon_rdp

    for sigma, rate, steps, delta in ((1e-9, 1.0, 1, 1e-3), (0.01, 1.0, 1, 1e-3), (1e-9, 5e-324, 100, 1e-5), (9e8, 1e-3, 1, 5e-324)):
        whole = (Segment(noise_multiplier=sigma, sample_rate=rate, steps=steps),)
        for epsilon in (epsilon_rdp, epsilon_prv):
            assert epsilon(whole, delta) >= 0 or math.isinf(epsilon(whole, delta))


def test_fresh_removes_nothing_but_a_run_of_ours(tmp_path):
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.tex").write_text("years of work")
    (thesis / "run.json").write_text('{"tool": "another"}')
    with pytest.raises(ConfigError):
        prepare_run_folder(thesis, load_plan(), resume=False, fresh=True)
    assert (thesis / "chapter.tex").exists()


def test_fresh_on_a_link_to_a_run_is_an_error_of_ours(tmp_path):
    prepare_run_folder(tmp_path / "real", load_plan(), resume=False)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(FedsecError):
        prepare_run_folder(tmp_path / "link", load_plan(), resume=False, fresh=True)
