"""The round loop among hostile clients, on the real local engine: nobody spoils a round, and every refusal has its reason."""

import json
import threading

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedsec.checkpoint import CheckpointStore
from fedsec.defence import Defence
from fedsec.errors import RoundAborted, StorageError
from fedsec.flower.local import run_local
from fedsec.flower.loop import CentralEvaluation, FederationLoop, LoopServices
from fedsec.flower.state import ServerState
from fedsec.plan.load import load_plan
from fedsec.sim.faults import Fault, FaultKind, FaultPlan
from fedsec.vectors import Layout

LAYOUT = Layout((("bias", (2,)), ("weight", (2, 3))))
CLIENTS = 6


def plan_with(*overrides):
    base = [
        f"federation.num_clients={CLIENTS}",
        "federation.rounds=3",
        "federation.round_timeout_s=5.0",
        "robust.rule=mean",
        "attack.name=none",
        "privacy.unit=none",
        "secagg.enabled=false",
        "privacy.epsilon=inf",
    ]
    return load_plan(overrides=[*base, *overrides])


def honest_reply(message, partition, *, value=1.0, **about):
    config = message.content["config"]
    fields = {
        "client_id": f"client-{partition:04d}", "run_id": config["run_id"], "server_round": config["server_round"], "batch_size": 10,
        "randomness": "simulation seed", "segments": "[]",
    }  # fmt: skip
    content = RecordDict({"about": ConfigRecord({**fields, **about})})
    if message.metadata.message_type == "train":
        arrays = {"bias": np.full(2, 10 * value, np.float32), "weight": np.full((2, 3), 10 * value, np.float32)}
        content["update"] = ArrayRecord({name: Array(array) for name, array in arrays.items()})
    return Message(content, reply_to=message)


def client_app(mischief=None):
    """Clients that add one to everything; partition 0 does ``mischief(message, reply)`` to its training replies."""
    app = ClientApp()

    def answer(message, context):
        partition = context.node_config["partition-id"]
        reply = honest_reply(message, partition)
        if mischief is not None and partition == 0 and message.metadata.message_type == "train":
            return mischief(message, reply)
        return reply

    app.query("describe")(answer)
    app.train()(answer)
    return app


def run_loop(tmp_path, app, plan=None, *, faults=None, stop_after=None):
    plan = plan or plan_with()
    rows, stop, outcome = [], threading.Event(), {}

    def on_round(row):
        rows.append(row)
        if stop_after is not None and len(rows) >= stop_after:
            stop.set()

    server = ServerApp()

    @server.main()
    def main(grid, context):
        loop = FederationLoop(
            grid=grid,
            plan=plan,
            run_id="run",
            noise_multiplier=0.0,
            layout=LAYOUT,
            defence=Defence(plan=plan, noise_stddev=0.0),
            state=ServerState.initial(np.zeros(LAYOUT.size, np.float32)),
            checkpoints=CheckpointStore(tmp_path / "checkpoints", run_id="run", plan_digest=plan.digest()),
            services=LoopServices(
                evaluate=lambda _arrays: CentralEvaluation(accuracy=0.5, loss=1.0, recall=(0.5, 0.5)),
                epsilon=lambda _segments: (0.0, 0.0),
                on_round=on_round,
                stop=stop,
            ),
        )
        outcome["finished"] = loop.run()
        outcome["loop"] = loop

    run_local(
        server_app=server, client_app=app, num_nodes=plan.federation.num_clients, run_config={}, faults=faults, workers=2, kind="thread"
    )
    return rows, outcome


def test_honest_clients_move_the_model_by_the_mean_each_round(tmp_path):
    rows, outcome = run_loop(tmp_path, client_app())
    assert outcome["finished"]
    assert np.allclose(outcome["loop"].state.vector, 3.0)
    assert [row.num_valid for row in rows] == [CLIENTS] * 3


def with_update(arrays):
    def change(_message, reply):
        reply.content["update"] = ArrayRecord({name: Array(array) for name, array in arrays.items()})
        return reply

    return change


def with_about(**changes):
    def change(message, _reply):
        return honest_reply(message, 0, **changes)

    return change


def raising(_message, _reply):
    raise RuntimeError("client bug")


def without(part):
    def change(_message, reply):
        del reply.content[part]
        return reply

    return change


def npy_that_lies(_message, reply):
    lying = Array(np.zeros(2, np.float32))
    header = lying.data.replace(b"(2,), ", b"(2000000000,), ").replace(b"(2,)", b"(9999999999,)")
    reply.content["update"] = ArrayRecord(
        {"bias": Array(dtype="float32", shape=(2,), stype="numpy.ndarray", data=header), "weight": Array(np.zeros((2, 3), np.float32))}
    )
    return reply


GOOD = {"bias": np.ones(2, np.float32), "weight": np.ones((2, 3), np.float32)}


@pytest.mark.parametrize(
    ("mischief", "reason"),
    [
        (with_update({**GOOD, "bias": np.array([np.nan, 1], np.float32)}), "not finite"),
        (with_update({**GOOD, "bias": np.array([np.inf, 1], np.float32)}), "not finite"),
        (with_update({**GOOD, "bias": np.array([3e38, 1], np.float32)}), "magnitude"),
        (with_update({**GOOD, "bias": np.ones(3, np.float32)}), "shape"),
        (with_update({**GOOD, "bias": np.ones(2, np.float64)}), "dtype"),
        (with_update({**GOOD, "extra": np.ones(2, np.float32)}), "unknown"),
        (with_update({"bias": GOOD["bias"]}), "missing"),
        (with_update({}), "missing"),
        (with_update({**GOOD, "bias": np.array(["a", "b"])}), "dtype"),
        (npy_that_lies, "cannot be read"),
        (with_about(batch_size=0), "batch size"),
        (with_about(batch_size=-3), "batch size"),
        (with_about(batch_size=10**9), "batch size"),
        (with_about(batch_size=1.5), "description"),
        (with_about(client_id="client-0003"), "another client"),
        (with_about(client_id=""), "client id"),
        (with_about(client_id="x" * 1000), "client id"),
        (with_about(client_id="a\nb"), "client id"),
        (with_about(run_id="other"), "another run"),
        (with_about(segments="[[1, 2]]"), "spends"),
        (with_about(segments="[[NaN, 0.1, 3]]"), "spends"),
        (with_about(segments="[" * 5000), "spends"),
        (with_about(segments=json.dumps([[1.0, 0.1, 1]] * 2000)), "spends"),
        (without("about"), "description"),
        (without("update"), "no update"),
        (raising, "error reply"),
    ],
)
def test_one_bad_client_is_refused_with_its_reason_and_the_round_goes_on(tmp_path, mischief, reason):
    rows, outcome = run_loop(tmp_path, client_app(mischief), plan_with("federation.rounds=1"))
    assert np.allclose(outcome["loop"].state.vector, 1.0)
    ((client_id, why),) = rows[0].rejected
    assert client_id == "client-0000"
    assert reason in why
    assert rows[0].num_valid == CLIENTS - 1


def test_a_stale_reply_of_another_round_is_refused(tmp_path):
    rows, _ = run_loop(tmp_path, client_app(with_about(server_round=77)), plan_with("federation.rounds=1"))
    assert "another round" in rows[0].rejected[0][1]


def test_too_few_valid_updates_leave_the_model_as_it_was(tmp_path):
    silent = FaultPlan(faults=tuple(Fault(kind=FaultKind.ERROR, partition=p, server_round=2, message_type="train") for p in range(4)))
    rows, outcome = run_loop(tmp_path, client_app(), plan_with("federation.min_clients=4"), faults=silent)
    assert [row.num_valid for row in rows] == [6, 2, 6]
    assert rows[1].update_norm == 0.0
    assert np.allclose(outcome["loop"].state.vector, 2.0)


def test_a_round_in_which_every_client_refuses_aborts_with_the_first_reason(tmp_path):
    broken = FaultPlan(faults=(Fault(kind=FaultKind.ERROR, message_type="train"),))
    with pytest.raises(RoundAborted, match="no client trained in round 1"):
        run_loop(tmp_path, client_app(), faults=broken)


def test_with_one_client_asked_by_lot_its_error_costs_that_round_and_not_the_run(tmp_path):
    plan = plan_with("federation.fraction=0.17", "federation.min_clients=1", "federation.rounds=6")
    broken = FaultPlan(faults=tuple(Fault(kind=FaultKind.ERROR, partition=p, message_type="train") for p in (0, 1, 2)))
    rows, outcome = run_loop(tmp_path, client_app(), plan, faults=broken)
    assert outcome["finished"]
    assert [row.num_selected for row in rows] == [1] * 6
    assert {row.num_valid for row in rows} == {0, 1}


def test_a_silent_client_costs_the_deadline_and_no_more(tmp_path):
    gone = FaultPlan(faults=(Fault(kind=FaultKind.DROP, partition=2, server_round=1, message_type="train"),))
    rows, outcome = run_loop(tmp_path, client_app(), plan_with("federation.round_timeout_s=0.5"), faults=gone)
    assert [row.num_dropped for row in rows] == [1, 0, 0]
    assert np.allclose(outcome["loop"].state.vector, 3.0)


def test_a_late_reply_of_an_earlier_round_does_not_enter_a_later_one(tmp_path):
    late = FaultPlan(faults=(Fault(kind=FaultKind.DELAY, partition=2, server_round=1, message_type="train", delay_s=1.0),))
    rows, outcome = run_loop(tmp_path, client_app(), plan_with("federation.round_timeout_s=0.5"), faults=late)
    assert [row.num_valid for row in rows] == [5, 6, 6]
    assert outcome["finished"]


def test_two_nodes_that_claim_one_id_both_sit_out(tmp_path):
    app = ClientApp()

    def answer(message, context):
        return honest_reply(message, min(context.node_config["partition-id"], CLIENTS - 2))

    app.query("describe")(answer)
    app.train()(answer)
    rows, outcome = run_loop(tmp_path, app, plan_with("federation.rounds=1"))
    assert sorted(outcome["loop"].clients) == [f"client-{p:04d}" for p in range(CLIENTS - 2)]
    assert rows[0].num_selected == CLIENTS - 2


def test_too_few_clients_abort_the_run_with_the_first_fault(tmp_path):
    app = ClientApp()

    @app.query("describe")
    def describe(message, context):
        raise RuntimeError("no data here")

    with pytest.raises(RoundAborted, match="no data here"):
        run_loop(tmp_path, app)


def test_a_stop_ends_after_the_round_in_hand_with_its_checkpoint(tmp_path):
    rows, outcome = run_loop(tmp_path, client_app(), plan_with("federation.rounds=50"), stop_after=2)
    assert not outcome["finished"]
    assert len(rows) == 2
    loaded = CheckpointStore(tmp_path / "checkpoints", run_id="run", plan_digest=plan_with("federation.rounds=50").digest()).load()
    assert loaded.server_round == 2


def test_the_choice_of_clients_is_seeded_and_changes_from_round_to_round(tmp_path):
    plan = plan_with("federation.fraction=0.5", "federation.rounds=6")
    _, outcome = run_loop(tmp_path, client_app(), plan)
    loop = outcome["loop"]
    chosen = [loop.select(number) for number in range(1, 7)]
    assert all(len(names) == 3 for names in chosen)
    assert len(set(chosen)) > 1
    assert sum(loop.state.asked.values()) == 18


def test_a_mean_that_would_overflow_leaves_the_model_as_it_was():
    state = ServerState.initial(np.full(3, 3e38, np.float32))
    assert not state.apply(np.full(3, 3e38), plan_with().training)
    assert np.all(state.vector == np.float32(3e38))


def test_server_momentum_and_tail_average_do_what_they_say():
    training = plan_with("training.server_momentum=0.5", "training.tail_average=2").training
    state = ServerState.initial(np.zeros(1, np.float32))
    for number, expected in enumerate([1.0, 2.5, 4.25], start=1):
        assert state.apply(np.ones(1), training)
        state.server_round = number
        state.remember_tail(training, rounds=3)
        assert state.vector[0] == expected
    assert state.released()[0] == np.float32((2.5 + 4.25) / 2)


def test_a_checkpoint_of_another_version_is_refused_clearly(tmp_path):
    store = CheckpointStore(tmp_path, run_id="r", plan_digest="p")
    arrays, rest = ServerState.initial(np.zeros(LAYOUT.size, np.float32)).to_checkpoint()
    del rest["reported_at"]
    store.save(1, arrays, rest)
    with pytest.raises(StorageError, match="another version"):
        ServerState.from_checkpoint(store.load(), LAYOUT)
