"""Secure aggregation over the local engine, with the real clients: who drops out, who lies, who is retried, and what a restart finds on disk."""

import contextlib
import json
import shutil
import threading
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch  # noqa: F401 - loaded before the clock of a stage runs
from flwr.app import ConfigRecord, MetricRecord
from flwr.serverapp import ServerApp

from client.app import app as honest_app
from fedsec.checkpoint import CheckpointStore
from fedsec.clientstore.inspect import read_ledger
from fedsec.defence import Defence
from fedsec.errors import RoundAborted, StorageError
from fedsec.files import sha256_file
from fedsec.flower import compat
from fedsec.flower import saved as saved_module
from fedsec.flower.journal import SITS_OUT_ROUNDS, Journal
from fedsec.flower.local import run_local
from fedsec.flower.loop import CentralEvaluation, FederationLoop, LoopServices
from fedsec.flower.saved import load_group, save_group
from fedsec.flower.state import ServerState
from fedsec.flower.tally import Tally
from fedsec.identity.roster import Roster
from fedsec.plan.load import load_plan
from fedsec.runfolder import prepare_run_folder
from fedsec.secagg.checks import sign_statement
from fedsec.secagg.client import Uploaded
from fedsec.secagg.cohorts import assign_cohorts
from fedsec.secagg.config import Member
from fedsec.secagg.evidence import verify_evidence
from fedsec.secagg.evidence_record import Evidence
from fedsec.secagg.group import GroupServer
from fedsec.secagg.labels import Phase
from fedsec.secagg.messages import Envelope, Input
from fedsec.secagg.views import input_digest, vector_hash
from fedsec.signing import verify_signature
from fedsec.sim.faults import Fault, FaultKind, FaultPlan
from fedsec.sim.identities import client_name, ensure_identities, load_client, load_federation
from fedsec.translog.entries import EntryKind
from fedsec.translog.proof import verify_log_proof
from fedsec.vectors import Layout
from server.secure import build_secure_rounds
from server.session import Session
from server.simulated import simulated_world

SIGMA = 8.0
LAYOUT = Layout((("bias", (10,)), ("weight", (10, 64))))
BASE = ["robust.rule=mean", "attack.name=none", "secagg.num_corrupt=1", "secagg.sketch_rows=64", f"privacy.noise_multiplier={SIGMA}", "privacy.epsilon=50", "training.steps=1",
        "training.batch_size=20", "federation.round_timeout_s=30.0", "secagg.stage_timeout_s=30.0", "federation.min_clients=2"]  # fmt: skip


def plan_with(num_clients, rounds, *more):
    return load_plan(overrides=[*BASE, f"federation.num_clients={num_clients}", f"federation.rounds={rounds}", *more])


@pytest.fixture(scope="module")
def certified(tmp_path_factory):
    """Identities for so many clients, made once."""
    made = {}

    def of(num_clients, cohort_size):
        if (num_clients, cohort_size) not in made:
            folder = tmp_path_factory.mktemp("ca") / "identities"
            names = [client_name(p) for p in range(num_clients)]
            ensure_identities(folder, names, cohort_size=cohort_size, now=datetime.now(UTC))
            made[num_clients, cohort_size] = folder
        return made[num_clients, cohort_size]

    return of


@pytest.fixture
def run(tmp_path, certified, monkeypatch):
    """Runs a plan: rows, loop, folder."""
    monkeypatch.setenv("FEDSEC_SIMULATION", "1")

    def one(plan, *, app=honest_app, faults=None, name="run", wrap=lambda grid: grid):
        folder = prepare_run_folder(tmp_path / name, plan, resume=True)
        if plan.secagg.enabled and not (folder.path / "identities").exists():
            shutil.copytree(certified(plan.federation.num_clients, plan.secagg.cohort_size), folder.path / "identities")
        rows, out, server = [], {}, ServerApp()

        @server.main()
        def main(grid, context):
            with contextlib.ExitStack() as cleanup:
                world = simulated_world(plan, folder)
                secure, loop_grid = None, world.way(wrap(grid))
                defence = Defence(plan=plan, noise_stddev=0.0)
                if plan.secagg.enabled:
                    secure = build_secure_rounds(
                        loop_grid,
                        plan,
                        folder,
                        world,
                        dimension=LAYOUT.size,
                        noise_multiplier=SIGMA,
                        defence=defence,
                        session=Session(),
                        cleanup=cleanup,
                    )
                checkpoints = CheckpointStore(folder.checkpoints, run_id="run", plan_digest=plan.digest())
                kept = checkpoints.load()
                zero = np.zeros(LAYOUT.size, np.float32)
                services = LoopServices(
                    evaluate=lambda _arrays: CentralEvaluation(accuracy=0.5, loss=1.0, recall=(0.5, 0.5)),
                    epsilon=lambda _segments: (0.0, 0.0),
                    on_round=rows.append,
                    stop=threading.Event(),
                )
                loop = FederationLoop(
                    grid=loop_grid, plan=plan, run_id="run", noise_multiplier=SIGMA, layout=LAYOUT, checkpoints=checkpoints, services=services, defence=defence,
                    state=ServerState.initial(zero) if kept is None else ServerState.from_checkpoint(kept, LAYOUT),
                    simulation_dir=str(folder.clients), secure=secure,
                )  # fmt: skip
                out["loop"] = loop
                loop.run()
                if secure is not None:
                    out["log"] = list(secure.log.entries())
                    out["proof"] = [secure.log.prove(i, 0, secure.now_s()) for i in range(len(secure.log))]

        run_local(
            server_app=server, client_app=app, num_nodes=plan.federation.num_clients, run_config={}, faults=faults, workers=2, kind="thread"
        )
        return rows, out, folder.path

    return one


def error(partition, server_round, message_type):
    return Fault(kind=FaultKind.ERROR, partition=partition, server_round=server_round, message_type=message_type)


def silent(partition, server_round, message_type):
    return Fault(kind=FaultKind.DROP, partition=partition, server_round=server_round, message_type=message_type)


IN_SUM = {"query.consistency_check": 5, "query.unmask": 6}
BEFORE_SUM = {"query.advertise_keys": 1, "query.share_keys": 2, "train.masked_input": 3, "query.sketch": 4}


def test_a_client_that_vanishes_in_any_stage_is_counted_there_and_the_sum_is_that_of_the_others(run):
    everywhere = {**BEFORE_SUM, **IN_SUM}
    faults = FaultPlan(faults=tuple(silent(2, server_round, stage) for stage, server_round in everywhere.items()))
    rows, out, folder = run(plan_with(6, 6), faults=faults)
    for stage, server_round in everywhere.items():
        row = rows[server_round - 1]
        (cohort,) = row.secagg.cohorts
        assert (cohort.opening, row.secagg.attempts) == ("held", 1)
        assert {name: count for name, count in cohort.dropouts.items() if count} == {stage.split(".")[1]: 1}
        assert cohort.num_accepted == row.num_valid == (6 if stage in IN_SUM else 5)
        assert row.num_dropped + row.num_valid == 6
    gone = FaultPlan(faults=tuple(error(2, server_round, "train") for server_round in BEFORE_SUM.values()))
    _, clear, _ = run(plan_with(6, 6, "secagg.enabled=false"), faults=gone, name="clear")
    moved = np.abs(clear["loop"].state.vector)
    assert np.abs(out["loop"].state.vector - clear["loop"].state.vector).max() < 1e-4 < moved.max()
    for client in (folder / "clients").iterdir():
        entries = [entry.server_round for entry in read_ledger(client)]
        assert len(entries) == len(set(entries)) >= 3


class Times:
    """Faults by how often a client was asked the same in a round: so that an attempt fails and the next one does not.

    ``where[partition, round, message type]`` is the kind of each time, None for no fault; what is not listed goes well.
    """

    def __init__(self, where):
        self.where, self.seen = where, Counter()

    def decide(self, *, partition, group_id, message_type):
        place = (partition, int(group_id), message_type)
        self.seen[place] += 1
        kinds = self.where.get(place, ())
        kind = kinds[self.seen[place] - 1] if self.seen[place] <= len(kinds) else None
        return Fault(kind=kind) if kind is not None else None


def both(places, kinds):
    return Times(dict.fromkeys(places, kinds))


def test_one_too_many_drop_outs_lose_the_round_and_no_more(run):
    too_many = FaultPlan(faults=tuple(silent(p, 2, "query.unmask") for p in (0, 1)))
    rows, out, _ = run(plan_with(4, 3), faults=too_many)
    assert [row.secagg.cohorts[0].opening for row in rows] == ["held", "not reached", "held"]
    lost = rows[1]
    assert (lost.secagg.attempts, lost.num_valid, lost.update_norm) == (1, 0, 0.0)  # shares may be out: never tried again
    assert "shares of" in lost.secagg.cohorts[0].reason
    assert lost.secagg.cohorts[0].dropouts["unmask"] == 2
    assert rows[2].update_norm > 0
    assert out["loop"].state.server_round == 3


def test_a_cohort_that_fails_before_unmask_is_tried_again_with_the_same_stored_input(run):
    flaky = both([(p, 1, "query.consistency_check") for p in (0, 1)], (FaultKind.DROP,))
    rows, out, folder = run(plan_with(4, 1), faults=flaky)
    assert rows[0].secagg.attempts == 2
    assert rows[0].secagg.cohorts[0].opening == "held"
    assert rows[0].num_valid == 4
    for client in (folder / "clients").iterdir():
        assert [entry.server_round for entry in read_ledger(client)] == [1]
    _, clear, _ = run(plan_with(4, 1, "secagg.enabled=false"), name="clear")
    assert np.abs(out["loop"].state.vector - clear["loop"].state.vector).max() < 1e-4


def test_two_attempts_are_all_and_the_next_round_goes_on(run):
    flaky = both([(p, 1, "query.sketch") for p in (0, 1)], (FaultKind.DROP, FaultKind.DROP))
    rows, _, _ = run(plan_with(4, 2), faults=flaky)
    assert rows[0].secagg.attempts == 2
    assert rows[0].secagg.cohorts[0].opening == "not reached"
    assert "needed" in rows[0].secagg.cohorts[0].reason
    assert rows[0].update_norm == 0.0
    assert rows[1].secagg.cohorts[0].opening == "held"


def test_of_two_cohorts_one_that_fails_costs_its_own_sum_only(run):
    plan = plan_with(8, 2, "secagg.cohort_size=4")
    rows, out, _ = run(plan)
    assert [cohort.opening for row in rows for cohort in row.secagg.cohorts] == ["held"] * 4
    assert [row.num_valid for row in rows] == [8, 8]
    secure = out["loop"].secure
    half = [int(member.client_id[-4:]) for member in secure.membership.cohorts[1]]
    first = FaultPlan(faults=tuple(silent(p, 2, "train.masked_input") for p in half[:2]))
    rows, _, _ = run(plan, faults=first, name="half")
    good, bad = rows[1].secagg.cohorts
    assert (good.opening, bad.opening) == ("held", "not reached")
    assert rows[1].num_valid == 4
    assert rows[1].update_norm > 0


def test_a_refusal_and_a_silent_second_attempt_do_not_end_the_run(run):
    """One garbled answer in attempt 1, and nobody there in attempt 2: the round is lost, not the run."""
    where = {(p, 1, "query.share_keys"): (FaultKind.ERROR,) for p in (0, 1)}
    where |= {(p, 1, "query.advertise_keys"): (None, FaultKind.DROP) for p in range(4)}
    rows, _, _ = run(plan_with(4, 2), faults=Times(where))
    assert [row.secagg.cohorts[0].opening for row in rows] == ["not reached", "held"]


def test_an_opened_cohort_survives_the_failure_of_the_other_ones_second_attempt(run):
    plan = plan_with(8, 1, "secagg.cohort_size=4")
    _, out, _ = run(plan, name="probe")
    half = [int(member.client_id[-4:]) for member in out["loop"].secure.membership.cohorts[1]]
    where = {(p, 1, "query.share_keys"): (FaultKind.ERROR,) for p in half[:2]}
    where |= {(p, 1, "query.advertise_keys"): (None, FaultKind.DROP) for p in half}
    rows, _, _ = run(plan, faults=Times(where))
    assert [cohort.opening for cohort in rows[0].secagg.cohorts] == ["held", "not reached"]
    assert rows[0].num_valid == 4


class Unavailable:
    """A grid that says of one message what a SuperLink says of an offline SuperNode's: its reply comes from the SuperLink, not the node."""

    def __init__(self, inner, message_type):
        self.inner, self.message_type, self.lost = inner, message_type, {}

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def push_messages(self, messages):
        messages = list(messages)
        ids = list(self.inner.push_messages(messages))
        for message_id, message in zip(ids, messages, strict=True):
            if message.metadata.message_type == self.message_type and message.metadata.dst_node_id == 1000 and not self.lost:
                self.lost[message_id] = True
        return ids

    def pull_messages(self, message_ids):
        wanted = set(message_ids)
        replies = list(self.inner.pull_messages(wanted - self.lost.keys()))
        for message_id in [one for one in wanted & self.lost.keys() if self.lost[one]]:
            self.lost[message_id] = False
            replies.append(compat.unavailable_reply(message_id, run_id=self.inner.run.run_id, created_at=0.0))
        return replies


@pytest.mark.parametrize("message_type", ["query.roster", "query.advertise_keys", "train.masked_input"])
def test_a_node_that_flower_calls_unavailable_is_a_drop_out(run, message_type):
    rows, _, _ = run(plan_with(5, 1), wrap=lambda grid: Unavailable(grid, message_type))
    assert rows[0].num_valid == 4


def lying(partition, server_round, lie):
    """The honest app, but that this client adds ``lie`` to its upload, signs that, and behaves as if nothing had happened."""

    def answer(message, context):
        reply = honest_app(message=message, context=context)
        metadata = message.metadata
        if (context.node_config["partition-id"], metadata.group_id, metadata.message_type) != (
            partition,
            str(server_round),
            "train.masked_input",
        ):
            return reply
        phase = Uploaded.decode(context.state["secagg"]["data"])
        envelope = Envelope.decode(reply.content["secagg"]["body"])
        vector = np.frombuffer(envelope.attachment, "<u4").copy()
        vector[: len(lie)] += np.asarray(lie, np.int64).astype(np.uint32)
        statement = replace(Input.decode(envelope.content), vector_hash=vector_hash(phase.seat.context, phase.seat.index, vector))
        folder = message.content["config"]["simulation_dir"] + "/../identities"
        signer = load_client(Path(folder).resolve(), client_name(partition)).signer
        changed = replace(phase, input_digest=input_digest(statement.encode()))
        context.state["secagg"] = ConfigRecord({"kind": changed.TYPE, "data": changed.encode()})
        reply.content["secagg"] = ConfigRecord({"body": sign_statement(statement, signer, attachment=vector.tobytes())})
        return reply

    return answer


def test_a_liar_is_named_with_evidence_that_anybody_can_check_and_left_out(run):
    rows, out, folder = run(plan_with(5, 3), app=lying(1, 2, [3, -5, 7]))
    assert [row.secagg.cohorts[0].opening for row in rows] == ["held", "failed", "held"]
    bad, after = rows[1], rows[2]
    ((name, _),) = bad.secagg.named
    assert name == "client-0001"
    assert (bad.num_valid, bad.update_norm, bad.secagg.unresolved) == (0, 0.0, ())
    assert after.num_valid == 4
    assert after.secagg.cohorts[0].dropouts["advertise_keys"] == 0  # it was not even asked
    (path,) = (folder / "evidence").iterdir()
    evidence = Evidence.decode(path.read_bytes())
    members = out["loop"].secure.membership.cohorts[0]
    assert verify_evidence(evidence, members).client_id == "client-0001"
    kinds = [entry.kind for entry in out["log"]]
    assert kinds == [EntryKind.ROSTER, EntryKind.ROUND, EntryKind.EVIDENCE, EntryKind.ROUND]
    logged = json.loads(out["log"][2].body)
    assert logged["client_id"] == "client-0001"
    assert logged["sha256"] == sha256_file(path)
    key = out["loop"].secure.signer.public_key
    for entry, proof in zip(out["log"], out["proof"], strict=True):
        head = verify_log_proof(proof.encode(), log_public_key=key, kept=None, entry=entry.encode())
        assert head.size == 4
    assert "client-0001" in json.loads((folder / "rounds.json").read_text())["excluded"]


def test_an_honest_client_is_not_reported_as_refused_because_another_one_lied(run):
    rows, _, _ = run(plan_with(4, 1), app=lying(1, 1, [3]))
    assert rows[0].secagg.named[0][0] == "client-0001"
    assert {name for name, _ in rows[0].rejected} <= {"client-0001"}


def test_two_nodes_that_claim_one_id_both_sit_out_and_the_others_aggregate(run):
    """Neither can act for the other either: what is signed is checked against the CA's list."""

    def app(message, context):
        if context.node_config["partition-id"] == 1:
            context.node_config = {**context.node_config, "partition-id": 0}
        return honest_app(message=message, context=context)

    rows, out, _ = run(plan_with(6, 1), app=app)
    assert sorted(out["loop"].clients) == [client_name(p) for p in range(2, 6)]
    assert rows[0].secagg.cohorts[0].opening == "held"
    assert rows[0].num_valid == 4


def test_a_client_that_sends_another_ones_answer_is_refused_and_the_other_one_is_not(run):
    copied = {}

    def app(message, context):
        reply = honest_app(message=message, context=context)
        kind, partition = message.metadata.message_type, context.node_config["partition-id"]
        if kind == "query.advertise_keys":
            if partition == 3:
                copied["body"] = reply.content["secagg"]["body"]
            elif partition == 4 and "body" in copied:
                reply.content["secagg"] = ConfigRecord({"body": copied["body"]})
        return reply

    rows, _, _ = run(plan_with(5, 2), app=app)
    assert rows[1].secagg.cohorts[0].opening == "held"
    assert rows[1].num_valid == 4
    assert [name for name, _ in rows[1].rejected] == ["client-0004"]


@pytest.mark.parametrize(
    "change",
    [
        lambda reply: reply.content.__setitem__("metrics", MetricRecord({"loss": 0.5})),
        lambda reply: reply.content.__setitem__("secagg", ConfigRecord({"body": reply.content["secagg"]["body"], "size": 7})),
        lambda reply: reply.content.__setitem__("secagg", ConfigRecord({"body": "text"})),
        lambda reply: reply.content.__setitem__("secagg", MetricRecord({"body": 1.0})),
        lambda reply: reply.content.__delitem__("secagg"),
        lambda reply: reply.content.__setitem__("secagg", ConfigRecord({"body": reply.content["secagg"]["body"][:-1]})),
        lambda reply: reply.content.__setitem__("secagg", ConfigRecord({"body": reply.content["secagg"]["body"] * 2})),
        lambda reply: reply.content.__setitem__("secagg", ConfigRecord({"body": bytes(100_000)})),
    ],
)
def test_a_reply_that_is_anything_but_one_sound_body_is_refused_and_the_round_goes_on(run, change):
    def app(message, context):
        reply = honest_app(message=message, context=context)
        if context.node_config["partition-id"] == 0 and message.metadata.message_type == "query.share_keys":
            change(reply)
        return reply

    rows, _, _ = run(plan_with(5, 1), app=app)
    assert rows[0].num_valid == 4
    assert [name for name, _ in rows[0].rejected] == ["client-0000"]


def test_a_run_in_which_every_client_refuses_to_join_ends_with_the_reason(run):
    with pytest.raises(RoundAborted, match="no client takes part"):
        run(plan_with(4, 2), faults=FaultPlan(faults=(Fault(kind=FaultKind.ERROR, message_type="query.advertise_keys"),)))


# --- A server that died in UNMASK ---------------------------------------------------------------------------------------------------


class DiesInUnmask:
    """A grid whose server is killed when it has sent so many requests to unmask."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def push_messages(self, messages):
        messages = list(messages)
        if messages and messages[0].metadata.message_type == "query.unmask":
            list(self.inner.send_and_receive(messages[:2], timeout=20))  # two clients have answered
            raise KeyboardInterrupt
        return self.inner.push_messages(messages)


@pytest.fixture
def died(run):
    """A run whose server died in UNMASK of round 1, and what to go on with."""
    plan = plan_with(4, 2)
    with pytest.raises(KeyboardInterrupt):
        run(plan, wrap=DiesInUnmask)

    def resume(**kwargs):
        return run(plan, **kwargs)

    return plan, resume


def test_a_server_that_died_in_unmask_opens_the_saved_group_and_gets_the_same_model(run, died):
    plan, resume = died
    rows, out, folder = resume()
    assert [row.secagg.cohorts[0].opening for row in rows] == ["held", "held"]
    assert rows[0].secagg.attempts == 1
    _, whole, _ = run(plan, name="whole")
    assert np.array_equal(out["loop"].state.vector, whole["loop"].state.vector)
    for client in (folder / "clients").iterdir():
        assert [entry.server_round for entry in read_ledger(client)] == [1, 2]


def test_without_the_saved_group_the_round_is_lost_and_never_tried_again(died, tmp_path):
    _, resume = died
    (tmp_path / "run" / "unmasking" / "000001-1.bin").unlink()
    rows, _, _ = resume()
    assert [row.secagg.cohorts[0].opening for row in rows] == ["not reached", "held"]
    assert "the round is lost" in rows[0].secagg.cohorts[0].reason


def test_a_damaged_saved_group_is_said_to_be_and_nothing_is_opened(died, tmp_path):
    _, resume = died
    path = tmp_path / "run" / "unmasking" / "000001-1.bin"
    good = path.read_bytes()
    for place in (0, 40, 300, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(StorageError, match="damaged"):
            resume()
    for data in (b"", good[:-1], good + b"\0"):
        path.write_bytes(data)
        with pytest.raises(StorageError, match="damaged"):
            resume()
    path.write_bytes(good)
    assert resume()[0][0].secagg.cohorts[0].opening == "held"


def test_a_saved_group_replays_to_the_same_requests_and_only_for_its_own_members(died, tmp_path):
    plan, resume = died
    path = tmp_path / "run" / "unmasking" / "000001-1.bin"
    members = load_members(tmp_path / "run", plan)
    first = load_group(path, lambda _number: members, verify_signature)
    again = load_group(path, lambda _number: members, verify_signature)
    assert first.cohorts[0].requests() == again.cohorts[0].requests()
    assert first.cohorts[0].phase is Phase.UNMASK
    save_group(path, first)
    assert load_group(path, lambda _number: members, verify_signature).cohorts[0].requests() == first.cohorts[0].requests()
    swapped = (members[1], members[0], *members[2:])
    with pytest.raises(StorageError, match="damaged"):
        load_group(path, lambda _number: swapped, verify_signature)
    assert load_group(tmp_path / "absent.bin", lambda _number: members, verify_signature) is None
    assert load_group(path, lambda _number: members, verify_signature, roster_hash=first.cohorts[0].config.roster_hash) is not None
    assert load_group(path, lambda _number: members, verify_signature, roster_hash=bytes(32)) is None  # the CA's list is another by now
    resume()
    assert list(path.parent.iterdir()) == []  # nothing of a round is kept past its checkpoint


class DiesInAttempt2:
    """A grid whose server is killed when it asks for keys in a second attempt."""

    def __init__(self, inner):
        self.inner, self.joins = inner, 0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def push_messages(self, messages):
        messages = list(messages)
        if messages and messages[0].metadata.message_type == "query.advertise_keys":
            self.joins += 1
            if self.joins == 2:
                raise KeyboardInterrupt
        return self.inner.push_messages(messages)


def test_a_sum_opened_in_attempt_1_outlives_a_server_that_dies_in_attempt_2(run):
    plan = plan_with(8, 1, "secagg.cohort_size=4")
    _, out, _ = run(plan, name="probe")
    half = [int(member.client_id[-4:]) for member in out["loop"].secure.membership.cohorts[1]]
    fails = Times({(p, 1, "query.share_keys"): (FaultKind.ERROR,) for p in half[:2]})
    with pytest.raises(KeyboardInterrupt):
        run(plan, faults=fails, wrap=DiesInAttempt2)
    rows, _, folder = run(plan)
    assert [cohort.opening for cohort in rows[0].secagg.cohorts] == ["held", "not reached"]
    assert rows[0].num_valid == 4
    for client in (folder / "clients").iterdir():
        assert len(read_ledger(client)) <= 1


def load_members(folder, plan):
    files = load_federation(folder / "identities")
    roster = Roster.decode(files.signed_roster.roster_bytes)
    (names,) = assign_cohorts(roster.cohort_seed, sorted(roster.by_id), cohort_size=plan.secagg.cohort_size)
    return tuple(Member(client_id=name, public_key=roster.by_id[name].public_key) for name in names)


def test_a_group_that_is_too_large_is_not_saved_and_an_older_file_is_removed(tmp_path, monkeypatch):
    path = tmp_path / "unmasking.bin"
    path.write_bytes(b"older")
    monkeypatch.setattr(saved_module, "MAX_SAVED_BYTES", -1)
    assert save_group(path, GroupServer(cohorts={}, nonce=bytes(32))) is False
    assert not path.exists()


# --- Journal and tally --------------------------------------------------------------------------------------------------------------


def test_the_journal_says_which_attempt_comes_next(tmp_path):
    journal = Journal.load(tmp_path / "j.json")
    assert [journal.next_attempt(1, attempts) for attempts in (1, 2)] == [1, 1]
    journal.begin(1, 1, 100)
    for there in (journal, Journal.load(journal.path)):
        assert [there.next_attempt(1, attempts) for attempts in (1, 2)] == [None, 2]
        assert there.next_attempt(2, 2) == 1
        assert there.time_s == 100
    journal.begin(1, 2, 200)
    assert Journal.load(journal.path).time_s == 100  # CONFIG of every attempt names the first one's time
    assert Journal.load(journal.path).next_attempt(1, 2) is None
    journal.begin_unmasking()
    there = Journal.load(journal.path)
    assert there.next_attempt(1, 5) is None
    assert there.next_attempt(1, 5, saved=True) == 3  # what was about to be unmasked is opened from the file; the others may try again
    assert there.next_attempt(2, 2) == 1
    journal.begin(2, 1, 300)
    there = Journal.load(journal.path)
    assert (there.time_s, there.unmasking) == (300, False)


def test_the_journal_remembers_who_is_out_and_for_how_long(tmp_path):
    journal = Journal.load(tmp_path / "j.json")
    journal.begin(3, 1, 0)
    journal.exclude("liar", "proof")
    journal.sit_out("quiet")
    there = Journal.load(journal.path)
    assert there.left_out(3 + SITS_OUT_ROUNDS) == {"liar", "quiet"}
    assert there.left_out(4 + SITS_OUT_ROUNDS) == {"liar"}


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "7", '"x"', '{"server_round": "1"}', '{"attempt": 1.0}', '{"time_s": true}', '{"extra": 1}', '{"path": "/etc/passwd"}'],
)  # fmt: skip
def test_a_damaged_journal_is_refused(tmp_path, text):
    (tmp_path / "j.json").write_text(text)
    with pytest.raises(StorageError, match="damaged"):
        Journal.load(tmp_path / "j.json")


@pytest.mark.parametrize(
    "text",
    ['{"unmasking": "no"}', '{"unmasking": 0}', '{"excluded": 5}', '{"excluded": ["a"]}', '{"sits_out_until": {"a": "b"}}',
     '{"server_round": -1}', "[" * 100_000],
)  # fmt: skip
def test_a_journal_with_a_value_of_the_wrong_type_is_refused(tmp_path, text):
    (tmp_path / "j.json").write_text(text)
    with pytest.raises(StorageError, match="damaged"):
        Journal.load(tmp_path / "j.json")


def test_the_tally_counts_answers_bytes_and_time_by_cohort():
    tally = Tally()
    tally.add_asked(0, Phase.SKETCH, 4)
    tally.add_asked(1, Phase.SKETCH, 3)
    tally.add_asked(0, Phase.SKETCH, 4)  # a second attempt
    for _ in range(6):
        tally.add_answer(0, Phase.SKETCH)
    assert tally.dropouts(0) == {"sketch": 2}
    assert tally.dropouts(1) == {"sketch": 3}
    assert tally.dropouts(2) == {}
    tally.add_up(0, 0, 10)
    tally.add_up(0, 0, 10)
    tally.add_up(0, 3, 40)
    tally.add_up(1, 0, 1000)
    tally.add_down(0, 0, 5)
    assert (tally.mean_up(0), tally.mean_up(1), tally.mean_up(2), tally.mean_down(0)) == (30, 1000, 0, 5)
    tally.add_time(Phase.SKETCH, 1.0)
    tally.add_time(Phase.SKETCH, 0.5)
    assert tally.seconds == {"sketch": 1.5}
