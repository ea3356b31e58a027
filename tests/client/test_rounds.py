"""A client in front of a server that asks for too much, asks again, or asks differently: the real ClientApp, the real store."""

import json

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, RecordDict

from client.app import app
from fedsec.clientstore.inspect import read_ledger
from fedsec.errors import ConfigError, DecodeError, PeerError, PrivacyBudgetExceeded
from fedsec.flower import compat, records
from fedsec.models.factory import build_model
from fedsec.models.parameters import get_arrays
from fedsec.plan.load import load_plan
from fedsec.vectors import arrays_digest

SIGMA = 1.6
PLAN = load_plan(
    overrides=[
        "attack.name=none",
        "robust.rule=mean",
        "secagg.enabled=false",
        "privacy.noise_multiplier=1.6",
        "federation.rounds=4",
        "privacy.epsilon=3",
    ]
)


@pytest.fixture(autouse=True)
def _identity(monkeypatch):
    monkeypatch.setenv("FEDSEC_SIMULATION", "1")
    with compat.task_identity(7):
        yield


@pytest.fixture
def context():
    return Context(run_id=7, node_id=1000, node_config={"partition-id": 0, "num-partitions": 20}, state=RecordDict(), run_config={})


def model_arrays(scale=0.0):
    arrays = get_arrays(build_model(PLAN.model, input_shape=(64,), num_classes=10, seed=1), ("weight", "bias"))
    return {name: (array + scale).astype(np.float32) for name, array in arrays.items()}


class Server:
    """Asks one client directly, as the loop would."""

    def __init__(self, folder, context):
        self.folder, self.context = folder, context

    def ask(self, server_round, *, kind=records.TRAIN, plan=PLAN, sigma=SIGMA, arrays=None, run_id="run-a", **changes):
        arrays = model_arrays() if arrays is None else arrays
        fields = {
            "run_id": run_id, "server_round": server_round, "plan_json": records.plan_to_canonical(plan), "noise_multiplier": sigma,
            "model_hash": arrays_digest(arrays), "simulation_dir": str(self.folder), **changes,
        }  # fmt: skip
        message = records.make_request(
            records.RoundRequest(**fields), node_id=1000, message_type=kind, arrays=records.arrays_to_record(arrays)
        )
        compat.assign_message_id(message, f"m-{server_round}")
        return app(message=message, context=self.context)

    def update(self, *args, **kwargs):
        reply = self.ask(*args, **kwargs)
        return records.read_update(reply, sender="c")

    @property
    def ledger(self):
        return read_ledger(self.folder / "client-0000")


@pytest.fixture
def server(tmp_path, context):
    return Server(tmp_path, context)


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_the_same_question_gets_the_same_bytes_and_costs_nothing_more(server):
    first = server.update(1)
    assert same(server.update(1), first)
    assert len(server.ledger) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"arrays": model_arrays(0.1)},
        {"sigma": 2.5},
        {"attempt": 2},
        {
            "plan": load_plan(
                overrides=[
                    "secagg.enabled=false",
                    "privacy.noise_multiplier=1.6",
                    "federation.rounds=4",
                    "privacy.epsilon=3",
                    "training.steps=1",
                ]
            )
        },
    ],
)
def test_a_second_question_for_the_same_round_is_refused(server, change):
    server.ask(1)
    with pytest.raises(PeerError, match="another request"):
        server.ask(1, **change)
    assert len(server.ledger) == 1


def test_a_crash_while_training_is_charged_once_and_released_once(server, monkeypatch):
    import client.rounds

    real = client.rounds.local_update

    def crash(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(client.rounds, "local_update", crash)
    with pytest.raises(KeyboardInterrupt):
        server.ask(1)
    assert len(server.ledger) == 1
    monkeypatch.setattr(client.rounds, "local_update", real)
    after = server.update(1)
    assert len(server.ledger) == 1
    assert same(after, server.update(1))


def test_a_crash_after_training_and_before_storing_gives_the_very_same_update(server, tmp_path, context, monkeypatch):
    from fedsec.clientstore.store import ClientStore

    undisturbed = Server(tmp_path / "other", context).update(1)

    def crash(*_args, **_kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ClientStore, "finish_round", crash)
        with pytest.raises(KeyboardInterrupt):
            server.ask(1)
    assert same(server.update(1), undisturbed)
    assert len(server.ledger) == 1


def test_spends_of_all_runs_add_up_and_the_cap_holds_with_the_numbers_in_the_error(server):
    rounds = 0
    with pytest.raises(PrivacyBudgetExceeded) as caught:
        for number in range(1, 100):
            server.ask(1, run_id=f"run-{number}")
            rounds += 1
    assert rounds > 4
    assert caught.value.limit == 3.0
    assert caught.value.spent > 3.0 >= caught.value.before
    assert len(server.ledger) == rounds


def test_a_refused_spend_trains_nothing_and_leaves_no_entry(server, monkeypatch):
    import client.rounds

    monkeypatch.setattr(client.rounds, "local_update", lambda *_a, **_k: pytest.fail("trained"))
    with pytest.raises(PrivacyBudgetExceeded):
        server.ask(1, plan=load_plan(overrides=["secagg.enabled=false", "privacy.noise_multiplier=0.1", "privacy.epsilon=3"]), sigma=0.1)
    assert len(server.ledger) == 0


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), float("inf")])
def test_a_private_plan_with_a_sigma_that_is_no_noise_is_refused(server, sigma):
    with pytest.raises(ConfigError, match="no protection"):
        server.ask(1, sigma=sigma)


def test_a_run_without_privacy_after_a_private_one_is_counted_as_infinite(server):
    server.ask(1)
    open_plan = load_plan(overrides=["privacy.unit=none", "privacy.epsilon=inf", "secagg.enabled=false"])
    server.ask(1, run_id="run-b", plan=open_plan, sigma=0.0)
    with pytest.raises(PrivacyBudgetExceeded):
        server.ask(2)


def test_a_model_that_is_not_the_one_it_is_said_to_be_is_refused(server):
    with pytest.raises(DecodeError, match="hash"):
        server.ask(1, model_hash="0" * 64)


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"weight": np.zeros((10, 64), np.float32)},
        {"weight": np.zeros((10, 64), np.float32), "bias": np.zeros(11, np.float32)},
        {"weight": np.full((10, 64), np.nan, np.float32), "bias": np.zeros(10, np.float32)},
    ],
)
def test_a_model_of_another_shape_or_with_nan_is_refused(server, arrays):
    with pytest.raises(DecodeError, match="not the plan's"):
        server.ask(1, arrays=arrays)


def test_malformed_requests_raise_a_clear_error(context):
    message = records.make_request(
        records.RoundRequest(run_id="r", server_round=1, plan_json="{}", noise_multiplier=1.0), node_id=1000, message_type=records.TRAIN
    )
    good = dict(message.content["config"])
    for key, value in good.items():
        for bad in (None, b"x", 1.5 if not isinstance(value, float) else "x"):
            config = {**good, key: bad}
            if bad is None:
                del config[key]
            message.content["config"] = ConfigRecord(config)
            with pytest.raises(DecodeError, match=key):
                app(message=message, context=context)


def test_a_reply_holds_public_constants_only(server):
    reply = server.ask(1)
    about = reply.content["about"]
    assert set(about) == {"client_id", "run_id", "server_round", "batch_size", "randomness", "segments"}
    assert about["batch_size"] == 18
    assert about["randomness"] == "simulation seed"
    assert json.loads(about["segments"]) == [[SIGMA, 0.25, 3]]
    assert set(reply.content) == {"about", "update"}


def test_the_round_key_is_gone_from_the_store_once_the_update_is_stored(server):
    server.ask(1)
    import sqlite3

    with sqlite3.connect(server.folder / "client-0000" / "store.sqlite") as connection:
        assert connection.execute("SELECT round_key FROM rounds").fetchall() == [(None,)]


PERSONAL = load_plan(
    overrides=[
        "secagg.enabled=false",
        "privacy.noise_multiplier=1.6",
        "privacy.epsilon=3",
        "federation.rounds=4",
        "model.personal=['bias']",
        "federation.evaluate_clients=true",
    ]
)
SHARED = {"weight": np.zeros((10, 64), np.float32)}


def test_a_personal_parameter_is_never_sent_and_never_trained_before_the_last_release(server):
    update = server.update(1, plan=PERSONAL, arrays=SHARED)
    assert set(update) == {"weight"}
    assert set(server.ask(1, kind=records.EVALUATE, plan=PERSONAL, arrays=SHARED).content["metrics"]) == {
        "accuracy",
        "personal_accuracy",
        "num_examples",
    }


def test_a_run_takes_no_more_rounds_once_its_personal_parameters_were_fitted(server):
    server.ask(1, plan=PERSONAL, arrays=SHARED)
    server.ask(1, kind=records.PERSONALISE, plan=PERSONAL, arrays=SHARED)
    with pytest.raises(PeerError, match="last release"):
        server.ask(2, plan=PERSONAL, arrays=SHARED)
    assert len(server.ledger) == 1


def test_fitting_the_personal_parameters_helps_on_the_clients_own_test_records(server):
    trained = server.update(1, plan=PERSONAL, arrays=SHARED)
    model = {"weight": (trained["weight"] / 18).astype(np.float32)}
    server.ask(1, kind=records.PERSONALISE, plan=PERSONAL, arrays=model)
    metrics = server.ask(1, kind=records.EVALUATE, plan=PERSONAL, arrays=model).content["metrics"]
    assert metrics["personal_accuracy"] >= metrics["accuracy"]


def test_personal_parameters_inside_the_noised_gradient_are_kept_and_go_on_from_there(server):
    inside = load_plan(
        overrides=[
            "secagg.enabled=false",
            "privacy.noise_multiplier=1.6",
            "privacy.epsilon=3",
            "federation.rounds=4",
            "model.personal=['bias']",
            "model.personal_fit=dp",
        ]
    )
    assert set(server.update(1, plan=inside, arrays=SHARED)) == {"weight"}
    from fedsec.clientstore.store import ClientStore

    def kept():
        with ClientStore.open(server.folder / "client-0000", client_id="client-0000", durable=False) as store:
            return store.personal("run-a", "trained")

    first = kept()
    assert first is not None
    server.ask(2, plan=inside, arrays=SHARED)
    assert kept() != first


def test_test_results_are_not_sent_unless_the_plan_says_so(server):
    with pytest.raises(ConfigError, match="evaluate_clients"):
        server.ask(1, kind=records.EVALUATE)


DEPLOYED = """
client_id = "hospital-a"
home = "{home}"
source = "sklearn.datasets:load_nothing"
batch_size = 32
[policy]
epsilon_cap = 3.0
delta = 1e-3
"""


def test_a_deployed_client_takes_its_records_from_its_own_settings_and_never_a_seed(server, tmp_path, monkeypatch):
    (tmp_path / "ownrecords.py").write_text(
        "import numpy as np\ndef load():\n    rng = np.random.default_rng(0)\n    x = rng.random((60, 64), dtype=np.float32)\n    return {'x': x, 'y': rng.integers(0, 10, 60), 'num_classes': 10}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = tmp_path / "settings.toml"
    settings.write_text(DEPLOYED.format(home=tmp_path / "home").replace("sklearn.datasets:load_nothing", "ownrecords:load"))
    server.context.node_config["fedsec-settings"] = str(settings)
    first = server.ask(1)
    assert first.content["about"]["randomness"] == "operating system"
    assert first.content["about"]["client_id"] == "hospital-a"
    assert first.content["about"]["batch_size"] == 32
    again = Server(server.folder, server.context)
    other_home = settings.read_text().replace(str(tmp_path / "home"), str(tmp_path / "home2"))
    update = records.read_update(first, sender="c")
    settings.write_text(other_home)
    assert not same(again.update(1), update)
    assert (tmp_path / "home" / "store.sqlite").stat().st_mode & 0o777 == 0o600


def test_what_a_failing_model_says_about_a_record_stays_with_the_client(server, monkeypatch, caplog):
    import client.rounds
    from client.app import ClientFailedError

    def leak(*_args, **_kwargs):
        raise RuntimeError("bad record: patient 4711")

    monkeypatch.setattr(client.rounds, "local_update", leak)
    with pytest.raises(ClientFailedError, match="RuntimeError") as caught:
        server.ask(1)
    assert "4711" not in str(caught.value)
    assert caught.value.__suppress_context__
    assert "4711" in caplog.text
