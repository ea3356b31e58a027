"""A client's handlers of secure aggregation against a hostile server: each attack of the design's list that lives here, as one story.

The server is ours, with its own machines, and cheats in between; clients are the real ClientApp with their real stores. ``Story`` plays one run.
"""

import base64
import contextlib
import logging
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, RecordDict

from client import credentials
from client.app import app
from client.secagg import _PHASES as CALL_PHASES
from fedsec.clientstore.inspect import read_ledger
from fedsec.clientstore.store import ClientStore
from fedsec.defence import Defence
from fedsec.errors import FedsecError, PeerError
from fedsec.flower import compat, records
from fedsec.flower.secure_records import ROSTER, STAGES, RosterOffer, RosterReply, make_stage_request, stage_type
from fedsec.flower.signed import SIGNATURE_RECORD, sign_request
from fedsec.flower.stage_calls import RoundInput
from fedsec.identity.ca import CertificateAuthority
from fedsec.identity.crl_file import CrlFile
from fedsec.identity.revocation import Revocation, RevokedError, make_crl
from fedsec.identity.roster import Roster, make_roster
from fedsec.identity.verify import claimed_serial_number
from fedsec.plan.load import load_plan
from fedsec.policy import PolicyRefusedError
from fedsec.runfolder import prepare_run_folder
from fedsec.secagg.checks import sign_config
from fedsec.secagg.cohorts import shamir_threshold
from fedsec.secagg.labels import Phase
from fedsec.secagg.messages import (
    Advert,
    BlameRequest,
    ConsistencyRequest,
    Envelope,
    MaskedInputRequest,
    MemberSignature,
    ShareKeysRequest,
    SketchRequest,
    UnmaskRequest,
)
from fedsec.secagg.opening import combine_secrets, open_round
from fedsec.secagg.server import CohortServer
from fedsec.secagg.views import input_root
from fedsec.signing import Signer
from fedsec.sim.identities import client_name, ensure_identities, load_client, load_federation, load_server_signer
from fedsec.translog.entries import EntryKind, LogEntry
from fedsec.translog.log import TransparencyLog
from fedsec.vectors import arrays_digest
from server.secure import build_secure_rounds
from server.session import Session
from server.simulated import simulated_world

SIGMA = 8.0
BASE = ["robust.rule=mean", "attack.name=none",
        "federation.num_clients=4", "federation.rounds=4", "secagg.num_corrupt=1", "secagg.sketch_rows=64", f"privacy.noise_multiplier={SIGMA}",
        "privacy.epsilon=50", "training.steps=1", "training.batch_size=20"]  # fmt: skip
PLAN = load_plan(overrides=BASE)
CLEAR = load_plan(overrides=[*BASE, "secagg.enabled=false"])
MODEL = {"weight": np.zeros((10, 64), np.float32), "bias": np.zeros(10, np.float32)}
OTHER_MODEL = {**MODEL, "bias": np.ones(10, np.float32)}
DIMENSION = 650
RUN = "run-1"
LATER = (Phase.SHARE_KEYS, Phase.MASKED_INPUT, Phase.SKETCH, Phase.CONSISTENCY_CHECK, Phase.UNMASK)
SOURCE = """
import numpy as np
def load():
    x = np.random.default_rng(0).random((200, 64)).astype(np.float32)
    return {"x": x, "y": np.arange(200) % 10, "num_classes": 10}
"""


@pytest.fixture(scope="module")
def identities(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ca") / "identities"
    ensure_identities(folder, [client_name(p) for p in range(4)], cohort_size=PLAN.secagg.cohort_size, now=datetime.now(UTC))
    return folder


class Attempt:
    """One attempt at a round: its CONFIG, the server's machine, and what was said."""

    def __init__(self, story, config, nonce):
        self.story, self.config, self.nonce = story, config, nonce
        self.server = CohortServer(config=config, members=story.secure.membership.cohorts[0], verify=story.secure.verify)
        self.signed = sign_config(config, story.secure.signer)
        self.asked, self.said = {}, {phase: {} for phase in STAGES}

    def requests(self):
        phase = self.server.phase
        if phase not in self.asked:
            self.asked[phase] = self.server.requests(signed_config=self.signed)
        return self.asked[phase]

    def run(self, until, *, absent=(), accept=None):
        """Be honest until the server is in phase ``until``; ``absent`` members say nothing."""
        while self.server.phase is not until:
            phase = self.server.phase
            for index, body in self.requests().items():
                if index not in absent:
                    self.said[phase][index] = self.story.stage(index, phase, body, of=self.config)
                    self.server.receive(index, self.said[phase][index])
            self.advance(accept)
        if until is not Phase.DONE:
            self.requests()
        return self

    def advance(self, accept=None):
        if self.server.phase is Phase.SKETCH:
            self.server.decide(self.server.screen() if accept is None else accept)
        else:
            self.server.close()
        if self.server.phase is Phase.SKETCH:
            self.server.open_nonce([self.server.input_root()], self.nonce)

    def ask(self, index, phase=None, body=None, **changes):
        """One client's answer to the true request of a phase, or to another one."""
        phase = phase or self.server.phase
        return self.story.stage(index, phase, self.asked[phase][index] if body is None else body, of=self.config, **changes)


class Story:
    """One run: identities, log, clients 0 to 3 of the cohort, which are partitions 0 to 3."""

    def __init__(self, path, identities, cleanup, plan=PLAN):
        self.plan = plan
        self.folder = prepare_run_folder(path / "run", plan, resume=False)
        shutil.copytree(identities, self.folder.path / "identities")
        self.identities = self.folder.path / "identities"
        world = simulated_world(plan, self.folder)
        self.server = world.federation.identity()
        self.secure = build_secure_rounds(
            None, plan, self.folder, world, dimension=DIMENSION, noise_multiplier=SIGMA, defence=Defence(plan=plan, noise_stddev=0.0),
            session=Session(), cleanup=cleanup,
        )  # fmt: skip
        self.contexts = {p: self.context(p, {"partition-id": p, "num-partitions": 4}) for p in range(4)}
        self.messages = 0

    @staticmethod
    def context(node, config):
        return Context(run_id=7, node_id=1000 + node, node_config=config, state=RecordDict(), run_config={})

    def ordinary(self, *, server_round=1, attempt=1, plan=None, model=MODEL, **fields):
        """The part of a request that every message has."""
        given = {
            "run_id": RUN, "server_round": server_round, "attempt": attempt, "noise_multiplier": SIGMA, "model_hash": arrays_digest(model),
            "plan_json": records.plan_to_canonical(plan or self.plan), "simulation_dir": str(self.folder.clients), **fields,
        }  # fmt: skip
        return records.RoundRequest(**given)

    def send(self, index, message_type, body, request, arrays=None, context=None):
        """The client's whole reply."""
        record = records.arrays_to_record(arrays) if arrays is not None else None
        if body is None:
            message = records.make_request(request, node_id=1000 + index, message_type=message_type, arrays=record)
        else:
            message = make_stage_request(request, body, node_id=1000 + index, message_type=message_type, arrays=record)
        self.messages += 1
        compat.assign_message_id(message, f"m{self.messages}")
        context = context or self.contexts[index]
        message.content[SIGNATURE_RECORD] = sign_request(message, self.server, flower_run_id=context.run_id, signed_at=datetime.now(UTC))
        return app(message=message, context=context)

    def stage(self, index, phase, body, *, of=None, arrays=MODEL, context=None, **changes):
        """The body of the client's answer in one stage, of the round of a CONFIG."""
        at = {"server_round": of.server_round, "attempt": of.attempt, "run_id": of.run_id} if of is not None else {}
        request = self.ordinary(**{**at, **changes})
        reply = self.send(index, stage_type(phase), body, request, arrays if phase is Phase.MASKED_INPUT else None, context)
        return reply.content["secagg"]["body"]

    # --- the server's part ------------------------------------------------------------------------------------------------------

    def offer(self, name="client-0000", *, since=0, membership=None, log=None, index=None):
        membership, log = membership or self.secure.membership, log or self.secure.log
        proof = log.prove(membership.log_index if index is None else index, since, self.secure.now_s()).encode()
        (members,) = membership.cohorts
        return RosterOffer(
            roster=membership.roster, signature=membership.signature, intermediate=membership.intermediate,
            server_certificate=membership.server_certificate, log_proof=proof,
            certificates=tuple(membership.certificates[member.client_id] for member in members),
        )  # fmt: skip

    def give_roster(self, index, offer=None, context=None):
        reply = self.send(index, ROSTER, (offer or self.offer()).encode(), self.ordinary(server_round=0, model_hash=""), context=context)
        return RosterReply.decode(reply.content["secagg"]["body"])

    def hand_out(self):
        assert all(self.give_roster(index).accepted for index in range(4))
        return self

    def config(self, *, nonce=b"n" * 32, server_round=1, attempt=1, model=MODEL, **changes):
        self.secure.journal.time_s = self.secure.journal.time_s or self.secure.now_s()
        request = self.ordinary(server_round=server_round, attempt=attempt, model=model)
        given = RoundInput(request=request, arrays=None, model_bytes=0, terms_hash=bytes.fromhex(terms_of(request)))
        config = self.secure._config(given, attempt, 0, nonce)
        return replace(config, **changes) if changes else config

    def attempt(self, number=1, *, server_round=1, nonce=None, **changes):
        nonce = nonce or bytes([server_round, number]) * 16
        return Attempt(self, self.config(nonce=nonce, server_round=server_round, attempt=number, **changes), nonce)

    def join(self, index, config, *, signer=None, **changes):
        """One client's answer to a CONFIG."""
        return self.stage(index, Phase.ADVERTISE_KEYS, sign_config(config, signer or self.secure.signer), of=config, **changes)

    # --- looking into a client --------------------------------------------------------------------------------------------------

    def ledger(self, index):
        folder = self.folder.clients / client_name(index)
        return read_ledger(folder) if (folder / "store.sqlite").exists() else ()

    @contextlib.contextmanager
    def store(self, index):
        with ClientStore.open(self.folder.clients / client_name(index), client_id=client_name(index), durable=False) as store:
            yield store

    def memory(self, index):
        return self.contexts[index].state["secagg"].copy()

    def put_back(self, index, memory):
        self.contexts[index].state["secagg"] = memory


def terms_of(request):
    from client.requests import run_terms

    return run_terms(request)


@pytest.fixture
def story(tmp_path, identities, monkeypatch):
    monkeypatch.setenv("FEDSEC_SIMULATION", "1")
    with contextlib.ExitStack() as cleanup, compat.task_identity(7):
        yield Story(tmp_path, identities, cleanup).hand_out()


def without(parts, sender, of=lambda part: part.sender):
    return tuple(part for part in parts if of(part) != sender)


def twisted(phase, body):
    """Another request of the same stage and round, which the client would take as gladly."""
    if phase is Phase.SHARE_KEYS:
        request = ShareKeysRequest.decode(body)
        return replace(request, adverts=without(request.adverts, 3, lambda part: Advert.decode(part.content).sender)).encode()
    if phase is Phase.MASKED_INPUT:
        request = MaskedInputRequest.decode(body)
        return replace(request, dealt=without(request.dealt, 3)).encode()
    if phase is Phase.SKETCH:
        request = SketchRequest.decode(body)
        inputs = without(request.inputs, 3)
        root = input_root(request.context, {leaf.sender: leaf.digest for leaf in inputs})
        return replace(request, inputs=inputs, cohort_roots=(root,)).encode()
    kind = ConsistencyRequest if phase is Phase.CONSISTENCY_CHECK else UnmaskRequest
    request = kind.decode(body)
    return replace(request, accepted=without(request.accepted, 3), rejected=(3,)).encode()


# --- Asked twice --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", LATER)
def test_the_same_request_gets_the_same_bytes_and_another_one_nothing(story, phase):
    attempt = story.attempt().run(phase)
    true, other = attempt.asked[phase][0], twisted(phase, attempt.asked[phase][0])
    first = attempt.ask(0)
    assert attempt.ask(0) == first
    with pytest.raises(PeerError, match="another request"):
        attempt.ask(0, phase, other)
    assert attempt.ask(0, phase, true) == first
    assert len(story.ledger(0)) == (phase is not Phase.SHARE_KEYS)


@pytest.mark.parametrize("phase", LATER)
def test_a_request_that_is_refused_costs_the_client_nothing_of_the_round(story, phase):
    attempt = story.attempt().run(phase)
    true = attempt.asked[phase][0]
    for bad in (true[:-1], b"", true[: len(true) // 2], true + b"x", bytes(len(true))):
        with pytest.raises(FedsecError):
            attempt.ask(0, phase, bad)
    attempt.run(Phase.DONE)
    assert attempt.server.accepted == (0, 1, 2, 3)


@pytest.mark.parametrize("phase", LATER[:-1])
def test_the_other_request_alone_would_have_been_answered(story, phase):
    """So that the tests above and below refuse for the reason they name, and not because ``twisted`` makes nonsense."""
    attempt = story.attempt().run(phase)
    assert attempt.ask(0, body=twisted(phase, attempt.asked[phase][0]))
    with pytest.raises(PeerError, match="another request"):
        attempt.ask(0)


def test_another_certificate_for_the_same_sets_gets_the_same_shares(story):
    attempt = story.attempt().run(Phase.UNMASK)
    request = UnmaskRequest.decode(attempt.asked[Phase.UNMASK][0])
    first = attempt.ask(0)
    consents = attempt.server.consents
    others = tuple(MemberSignature(sender=member, signature=consents[member]) for member in (1, 2, 3))
    assert others != request.certificate
    assert attempt.ask(0, body=replace(request, certificate=others).encode()) == first


def test_blame_is_answered_once_too(story):
    attempt = story.attempt().run(Phase.DONE)
    request = BlameRequest(context=attempt.server.context).encode()
    first = attempt.ask(0, Phase.BLAME, request)
    assert attempt.ask(0, Phase.BLAME, request) == first


def test_what_was_sent_is_forgotten_when_it_is_not_asked_for_any_more(story):
    attempt = story.attempt().run(Phase.SKETCH)
    attempt.ask(0)
    with pytest.raises(PeerError, match="erased"):
        attempt.ask(0, Phase.MASKED_INPUT)
    attempt.run(Phase.DONE)
    for phase in LATER[:-1]:
        with pytest.raises(PeerError, match="erased"):
            attempt.ask(0, phase)


# --- Attempts -----------------------------------------------------------------------------------------------------------------------


def test_two_attempts_are_never_both_unmasked(story):
    first = story.attempt(1).run(Phase.UNMASK)
    memories = [story.memory(p) for p in range(4)]
    second = story.attempt(2).run(Phase.UNMASK)
    for index in range(4):  # whichever comes first
        with pytest.raises(FedsecError):
            first.ask(index)
    second.run(Phase.DONE)
    for index in range(4):  # a node whose memory was put back, too
        story.put_back(index, memories[index])
        with pytest.raises(FedsecError):
            first.ask(index)


def test_who_answered_unmask_takes_no_part_in_another_attempt(story):
    first = story.attempt(1).run(Phase.UNMASK)
    first.ask(0)
    second = story.attempt(2)
    with pytest.raises(PeerError, match="answered UNMASK"):
        story.join(0, second.config)
    assert [bool(story.join(index, second.config)) for index in (1, 2, 3)] == [True] * 3


def test_a_second_flower_run_gives_the_server_no_second_attempt_beside_the_first(story):
    """Each Flower run has a Context of its own at a node: the first attempt would live on in one while the second runs in the other."""
    first = story.attempt(1).run(Phase.UNMASK)
    mine, others = story.contexts, {p: story.context(p, {"partition-id": p, "num-partitions": 4}) for p in range(4)}
    story.contexts = others
    second = story.attempt(2).run(Phase.CONSISTENCY_CHECK)
    story.contexts = mine
    with pytest.raises(PeerError, match="later one was"):
        first.ask(0)
    story.contexts = others
    second.run(Phase.DONE)


def test_a_retry_masks_the_stored_input_and_nobody_trains_or_pays_twice(story, monkeypatch):
    first = story.attempt(1).run(Phase.SKETCH)
    monkeypatch.setattr("client.secagg_input.train_update", lambda *_: pytest.fail("trained again"))
    second = story.attempt(2).run(Phase.DONE)
    secrets, bad = combine_secrets(second.server)
    assert not bad
    total = open_round(second.server, secrets).total
    stored = []
    for index in range(4):
        assert [entry.server_round for entry in story.ledger(index)] == [1]
        assert first.said[Phase.MASKED_INPUT][index] != second.said[Phase.MASKED_INPUT][index]
        with story.store(index) as store:
            stored.append(np.frombuffer(store.answer(RUN, 1), "<i4"))
            assert store.protocol.sketch_rows() == 2 * 64  # of the given-up attempt too
    assert np.array_equal(total, np.sum(stored, axis=0))
    assert np.abs(total).max() > 0


def test_a_retry_changes_nothing_but_attempt_and_nonce(story):
    story.attempt(1).run(Phase.MASKED_INPUT)
    changed = replace(story.config(attempt=2, nonce=b"2" * 32), time_s=story.secure.journal.time_s + 1)
    with pytest.raises(PeerError, match="attempt and nonce only"):
        story.join(0, changed)
    other_model = story.config(attempt=2, nonce=b"2" * 32, model=OTHER_MODEL)
    with pytest.raises(PeerError, match="attempt and nonce only"):
        story.join(0, other_model, model=OTHER_MODEL)
    with pytest.raises(PeerError, match="nonce commitment"):
        story.join(0, story.config(attempt=2, nonce=b"\1\1" * 16))
    assert story.join(0, story.config(attempt=2, nonce=b"2" * 32))


def test_rounds_and_attempts_only_rise(story):
    story.attempt(1, server_round=2).run(Phase.SHARE_KEYS)
    for server_round, attempt in ((1, 1), (1, 2), (2, 1)):
        with pytest.raises(PeerError, match="only rise"):
            story.join(0, story.config(server_round=server_round, attempt=attempt, nonce=bytes([server_round, attempt, 9, 9]) * 8))
    assert story.join(0, story.config(server_round=3, nonce=b"3" * 32))


def test_an_attempt_that_the_plan_does_not_allow_is_refused(story):
    story.plan = load_plan(overrides=[*BASE, "secagg.attempts=1"])
    story.attempt(1).run(Phase.SHARE_KEYS)
    with pytest.raises(PeerError, match="the attempt in CONFIG"):
        story.join(0, story.config(attempt=2, nonce=b"2" * 32))


def test_a_nonce_is_good_for_one_round_of_one_run_only(story):
    story.attempt(1, nonce=b"n" * 32).run(Phase.SHARE_KEYS)
    with pytest.raises(PeerError, match="nonce commitment"):
        story.join(0, story.config(server_round=2, nonce=b"n" * 32))
    with pytest.raises(PeerError, match="nonce commitment"):
        story.join(0, replace(story.config(nonce=b"n" * 32), run_id="another-run"))


# --- Memory that is lost or put back ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", LATER)
def test_a_memory_that_is_put_back_gives_no_second_answer(story, phase):
    attempt = story.attempt().run(phase)
    before = story.memory(0)
    attempt.run(Phase.DONE)
    story.put_back(0, before)
    with pytest.raises(FedsecError):
        attempt.ask(0, phase, twisted(phase, attempt.asked[phase][0]))
    with contextlib.suppress(FedsecError):
        assert attempt.ask(0, phase) == attempt.said[phase][0]


@pytest.mark.parametrize("phase", LATER[:-1])
def test_nor_does_it_after_the_next_attempt_was_joined(story, phase):
    first = story.attempt(1).run(phase)
    before, asked = story.memory(0), first.asked[phase][0]
    first.ask(0)
    story.attempt(2).run(Phase.SHARE_KEYS)
    story.put_back(0, before)
    for body in (twisted(phase, asked), asked):
        with pytest.raises(FedsecError):
            first.ask(0, phase, body)


def test_nor_does_it_in_a_stage_that_the_first_attempt_never_reached(story):
    first = story.attempt(1).run(Phase.SKETCH)
    before = story.memory(0)
    story.attempt(2).run(Phase.SHARE_KEYS)
    story.put_back(0, before)
    with pytest.raises(PeerError, match="later one was"):
        first.ask(0)


@pytest.fixture
def deployed(story, tmp_path, monkeypatch):
    """Makes client 0 a deployed one; returns how to write its settings."""
    (tmp_path / "ownrecords.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    identity = tmp_path / "identity"
    identity.mkdir()
    for name in ("key.pem", "certificate.der"):
        shutil.copy(story.identities / "nodes" / "client-0000" / name, identity)
    shutil.copy(story.identities / "authority" / "root.der", identity)

    def settle(*policy, cap=50.0, client_id="client-0000", home="home", folder=identity):
        (tmp_path / "settings.toml").write_text(
            f'client_id = "{client_id}"\nhome = "{tmp_path / home}"\nsource = "ownrecords:load"\nbatch_size = 20\nidentity = "{folder}"\n'
            f"[policy]\nepsilon_cap = {cap}\ndelta = 1e-3\n" + "\n".join(policy)
        )
        story.contexts[0] = story.context(0, {"fedsec-settings": str(tmp_path / "settings.toml")})
        return story

    return settle


def test_a_deployed_client_that_lost_its_memory_sends_what_it_stored_and_sits_the_rest_out(deployed, tmp_path):
    story = deployed()
    assert story.give_roster(0).accepted
    attempt = story.attempt().run(Phase.SKETCH)
    deployed()  # restarted: same store, no memory
    assert attempt.ask(0, Phase.MASKED_INPUT) == attempt.said[Phase.MASKED_INPUT][0]
    with pytest.raises(PeerError, match="not in the phase"):
        attempt.ask(0)
    attempt.run(Phase.DONE, absent=(0,))
    assert attempt.server.rejected == (0,)
    again = story.attempt(1, server_round=2).run(Phase.DONE)  # the next round finds it well
    assert again.server.accepted == (0, 1, 2, 3)
    assert [entry.server_round for entry in read_ledger(tmp_path / "home")] == [1, 2]


def test_more_revoked_members_than_it_assumes_corrupt_stop_a_deployed_client(deployed, story, tmp_path):
    """The server withholds the newer list of clients, in which 2 and 3 are no more: their keys were stolen, and they would stay "honest" for days.

    One of them the protocol stands: c = 1, and a revoked member is a corrupt one.
    """
    authority = CertificateAuthority.load(story.identities / "authority")
    shutil.copy(story.identities / "authority" / "intermediate.der", tmp_path / "identity")
    now = datetime.now(UTC)

    def keep(number, *revoked):
        entries = [Revocation(claimed(story.identities / "nodes" / name / "certificate.der"), now) for name in revoked]
        CrlFile(path=tmp_path / "crl.der", floor_path=tmp_path / "crl-floor.json", intermediate_der=authority.intermediate_der,
                root_der=authority.root_der, federation=authority.federation).take(make_crl(authority, entries, number=number, now=now), now=now)  # fmt: skip

    story = deployed()
    keep(1)
    size = story.give_roster(0).log_size
    story.attempt().run(Phase.DONE)
    keep(2, "client-0002")
    story.attempt(1, server_round=2).run(Phase.DONE)
    keep(3, "client-0002", "client-0003")
    config = story.config(server_round=3)
    with pytest.raises(RevokedError, match="client-0002, client-0003 of this client's group were revoked, and it assumes at most 1"):
        story.join(0, config)
    with pytest.raises(RevokedError, match="client-0002"):
        story.give_roster(0, story.offer(since=size))
    assert [entry.server_round for entry in read_ledger(tmp_path / "home")] == [1, 2]
    keep(4)
    story.attempt(server_round=3).run(Phase.DONE)


def claimed(path):
    return int(claimed_serial_number(path.read_bytes()), 16)


def test_the_secrets_of_a_deployed_clients_round_are_never_on_its_disk(deployed, tmp_path):
    story = deployed()
    story.give_roster(0)
    attempt = story.attempt()
    found = set()
    for phase in LATER:
        attempt.run(phase)
        found |= secrets_of(story.memory(0))
        on_disk = b"".join(path.read_bytes() for path in (tmp_path / "home").iterdir())
        assert len(found) >= 3
        assert not [secret for secret in found if secret in on_disk]


def test_another_clients_identity_is_refused(deployed, story, tmp_path):
    with pytest.raises(FedsecError):
        deployed(client_id="client-0001").give_roster(0)
    other = tmp_path / "other"
    shutil.copytree(story.identities / "nodes" / "client-0001", other)
    shutil.copy(story.identities / "authority" / "root.der", other)
    with pytest.raises(FedsecError):
        deployed(folder=other).give_roster(0)


# --- The model ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrays", "changes"),
    [
        (OTHER_MODEL, {}),  # not what the request names
        (OTHER_MODEL, {"model": OTHER_MODEL}),  # not what CONFIG names
        (MODEL, {"model": OTHER_MODEL}),
        (None, {}),
        (MODEL, {"noise_multiplier": 7.0}),
        (MODEL, {"plan": load_plan(overrides=[*BASE, "training.steps=2"])}),
        (MODEL, {"server_round": 2}),
        (MODEL, {"attempt": 2}),
        (MODEL, {"run_id": "another"}),
    ],
)
def test_training_that_is_not_what_config_says_is_refused_before_the_ledger_is_charged(story, arrays, changes):
    attempt = story.attempt().run(Phase.MASKED_INPUT)
    with pytest.raises(FedsecError):
        attempt.ask(0, arrays=arrays, **changes)
    assert story.ledger(0) == ()
    attempt.run(Phase.DONE)  # and nothing of the round is lost
    assert len(story.ledger(0)) == 1


def test_a_model_of_another_size_than_configs_is_refused_before_the_ledger_is_charged(story):
    attempt = story.attempt(dimension=DIMENSION + 1).run(Phase.MASKED_INPUT)
    with pytest.raises(PeerError, match="650 parameters"):
        attempt.ask(0)
    assert story.ledger(0) == ()


def test_boxes_are_checked_before_the_ledger_is_charged(story):
    attempt = story.attempt().run(Phase.MASKED_INPUT)
    request = MaskedInputRequest.decode(attempt.asked[Phase.MASKED_INPUT][0])
    mine, theirs = request.dealt[0], request.dealt[1]
    for dealt in (
        (mine, replace(theirs, leaf=theirs.leaf[:-1] + bytes([theirs.leaf[-1] ^ 1]))),
        (mine, replace(theirs, root=bytes(32))),
        (replace(mine, root=bytes(32)), theirs),
    ):
        with pytest.raises(PeerError):
            attempt.ask(0, body=replace(request, dealt=(*dealt, *request.dealt[2:])).encode())
    assert story.ledger(0) == ()


# --- CONFIG -------------------------------------------------------------------------------------------------------------------------


def downgrade(num_clients, num_corrupt, minimum_accepted):
    threshold = shamir_threshold(num_clients, num_corrupt)
    numbers = {"num_clients": num_clients, "num_corrupt": num_corrupt, "minimum_accepted": minimum_accepted, "threshold": threshold}
    return {**numbers, "norm_bound": 1 << 26}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (downgrade(5, 1, 3), "limits"),
        (downgrade(6, 1, 3), "limits"),
        (downgrade(8, 2, 4), "limits"),
        ({"num_rows": 128}, "rule"),
        ({"norm_slack": 3.5}, "rule"),
        ({"rule": "krum"}, "rule"),
        ({"attempt": 2}, "round"),
        ({"server_round": 2}, "round"),
        ({"run_id": "another"}, "round"),
        ({"federation": "elsewhere.org"}, "federation"),
        ({"cohort": 1, "num_cohorts": 2}, "cohort"),
        ({"num_cohorts": 2}, "cohort"),
        ({"roster_hash": bytes(32)}, "roster"),
        ({"terms_hash": bytes(32)}, "plan"),
        ({"model_hash": bytes(32)}, "model"),
        ({"time_s": 0}, "time"),
        ({"time_s": 2**40}, "time"),
        ({"weight_limit": 19}, "weight"),
    ],
)
def test_a_config_that_is_not_the_plans_is_refused_and_nothing_is_joined(story, changes, reason):
    honest = story.config()
    with pytest.raises(PeerError, match=reason):
        story.join(0, replace(honest, **changes), server_round=1, attempt=1, run_id=RUN)
    assert story.join(0, honest)


def test_only_the_server_that_the_ca_names_can_send_config(story):
    config = story.config()
    for signer in (
        load_client(story.identities, "client-0001").signer,
        load_client(story.identities, "client-0000").signer,
        Signer.generate(),
    ):
        with pytest.raises(FedsecError, match="signature"):
            story.join(0, config, signer=signer)
    unsigned = Envelope.decode(sign_config(config, story.secure.signer))
    for body in (
        replace(unsigned, signature=bytes(64)).encode(),
        replace(unsigned, content=story.config(nonce=b"x" * 32).encode()).encode(),
    ):
        with pytest.raises(FedsecError):
            story.stage(0, Phase.ADVERTISE_KEYS, body)
    assert story.join(0, config)


def test_another_plan_than_configs_is_refused(story):
    config = story.config()
    for plan in (load_plan(overrides=[*BASE, "training.steps=2"]), load_plan(overrides=[*BASE, "secagg.sketch_rows=128"])):
        with pytest.raises(PeerError, match=r"plan|rule"):
            story.join(0, config, plan=plan)
    with pytest.raises(PeerError, match="plan"):
        story.join(0, config, noise_multiplier=7.0)


def test_a_client_without_a_list_of_clients_joins_nothing(story):
    story.contexts[0] = story.context(0, {"partition-id": 0, "num-partitions": 4})
    with pytest.raises(PeerError, match="no list"):
        story.join(0, story.config(), simulation_dir=str(fresh_clients(story)))


def fresh_clients(story):
    (story.folder.path / "fresh").mkdir()
    return story.folder.path / "fresh"


# --- The CA's list ------------------------------------------------------------------------------------------------------------------


def relisted(story, *, previous=True, ca=None, members=None, cohort_size=None, now=None, lifetime=None):
    """Another list of the same CA (or another's), logged, as the server would offer it."""
    authority = ca or CertificateAuthority.load(story.identities / "authority")
    old = Roster.decode(load_federation(story.identities).signed_roster.roster_bytes)
    signed = make_roster(
        authority.signer, federation=old.federation, members=members or old.members, cohort_size=cohort_size or old.cohort_size,
        server_public_key=old.server_public_key, server_fingerprint=old.server_fingerprint, now=now or datetime.now(UTC),
        previous=old if previous else None, **({"lifetime": lifetime} if lifetime else {}),
    )  # fmt: skip
    index = story.secure.log.append(LogEntry(kind=EntryKind.ROSTER, body=signed.roster_bytes))
    return replace(story.secure.membership, roster=signed.roster_bytes, signature=signed.signature, log_index=index)


def test_a_newer_list_replaces_the_old_one_which_never_comes_back(story):
    size = len(story.secure.log)
    newer = story.offer(since=size, membership=relisted(story))
    old = story.offer(since=size + 1)
    assert story.give_roster(0, newer).accepted
    with pytest.raises(FedsecError, match=r"version|older"):
        story.give_roster(0, old)
    with pytest.raises(PeerError, match="roster"):
        story.join(0, story.config())  # CONFIG by the old list
    with story.store(0) as store:
        assert store.protocol.roster("simulation.fedsec").version == 2


def test_a_list_drawn_again_under_the_same_version_is_refused(story):
    """The server cannot have the CA's seed drawn anew until it likes the cohorts, even with the CA's signature under each."""
    size = len(story.secure.log)
    redrawn = relisted(story, previous=False)
    assert Roster.decode(redrawn.roster).version == 1
    with pytest.raises(PeerError, match="older or another"):
        story.give_roster(0, story.offer(since=size, membership=redrawn))


def test_a_list_of_another_ca_or_changed_by_one_byte_is_refused(story):
    size = len(story.secure.log)
    foreign = relisted(story, ca=CertificateAuthority.create("simulation.fedsec", now=datetime.now(UTC)))
    with pytest.raises(FedsecError):
        story.give_roster(0, story.offer(since=size, membership=foreign))
    good, authority = story.offer(since=size), CertificateAuthority.load(story.identities / "authority")
    now = datetime.now(UTC)
    others_server = authority.issue_server("server", Signer.generate().public_key, now=now).certificate_der
    others_key = authority.issue_node("client-0000", Signer.generate().public_key, site="simulation", now=now).certificate_der
    for changed in (
        replace(good, server_certificate=others_server),  # of the same CA, for the right name, and another key
        replace(good, certificates=(others_key, *good.certificates[1:])),
        replace(good, roster=good.roster.replace(b"client-0003", b"client-0009")),
        replace(good, signature=bytes(64)),
        replace(good, certificates=(good.certificates[1], good.certificates[0], *good.certificates[2:])),
        replace(good, certificates=good.certificates[:-1]),
        replace(good, server_certificate=good.certificates[0]),
        replace(good, intermediate=good.server_certificate),
    ):
        with pytest.raises(FedsecError):
            story.give_roster(0, changed)


def test_a_list_out_of_its_period_is_refused(story):
    size = len(story.secure.log)
    for now in (datetime.now(UTC) - timedelta(days=2), datetime.now(UTC) + timedelta(days=2)):
        late = relisted(story, now=now, lifetime=timedelta(days=1))
        with pytest.raises(FedsecError):
            story.give_roster(0, story.offer(since=size, membership=late))


def test_a_list_serves_no_longer_than_its_period_whatever_time_the_server_claims(story, monkeypatch):
    config = story.config()
    later = datetime.now(UTC).timestamp() + 3650 * 86400
    monkeypatch.setattr("client.secagg.time.time", lambda: later)
    with pytest.raises(PeerError, match="period is over"):
        story.join(0, config)


def test_a_list_that_is_not_in_the_log_is_refused(story):
    size = len(story.secure.log)
    unlogged = relisted(story)
    story.secure.log.append(LogEntry(kind=EntryKind.ROUND, body=b"{}"))
    elsewhere = story.offer(since=size, membership=unlogged, index=size + 1)  # proof of another entry
    reply = story.give_roster(0, elsewhere)
    assert not reply.accepted
    with story.store(0) as store:
        assert store.protocol.roster("simulation.fedsec").version == 1


def test_a_log_that_was_written_anew_is_not_followed(story, tmp_path):
    signer = load_server_signer(story.identities)
    with TransparencyLog.open(tmp_path / "other-log", signer, durable=False) as log:
        log.append(LogEntry(kind=EntryKind.ROUND, body=b"history that the client did not see"))
        index = log.append(LogEntry(kind=EntryKind.ROSTER, body=story.secure.membership.roster))
        for since in (0, 1):
            assert not story.give_roster(0, story.offer(since=since, log=log, index=index)).accepted
    with story.store(0) as store:
        assert store.protocol.roster("simulation.fedsec").log_size == len(story.secure.log)


def test_a_client_that_followed_the_log_says_from_where_and_follows_on(story):
    story.secure.log.append(LogEntry(kind=EntryKind.ROUND, body=b"{}"))
    reply = story.give_roster(0)
    assert (reply.accepted, reply.log_size) == (0, 1)
    assert story.give_roster(0, story.offer(since=1)).accepted


# --- Policy -------------------------------------------------------------------------------------------------------------------------


def test_a_plain_training_message_under_a_plan_with_secure_aggregation_is_refused(story):
    with pytest.raises(PolicyRefusedError, match="masked updates only"):
        story.send(0, records.TRAIN, None, story.ordinary(), MODEL)
    assert story.ledger(0) == ()


@pytest.mark.parametrize("phase", [Phase.ADVERTISE_KEYS, *LATER, Phase.BLAME, Phase.BLAME_OPEN])
def test_a_stage_under_a_plan_without_secure_aggregation_is_refused(story, phase):
    with pytest.raises(FedsecError, match=r"secagg\.enabled"):
        story.stage(0, phase, b"anything", plan=CLEAR)


def test_a_deployed_client_that_requires_masks_trains_for_no_plan_in_clear(deployed, tmp_path):
    story = deployed("require_secagg = true")
    for plan in (CLEAR, PLAN):
        with pytest.raises(PolicyRefusedError, match="masked updates only"):
            story.send(0, records.TRAIN, None, story.ordinary(plan=plan), MODEL)
    story = deployed()  # one that does not insist trains in clear where the plan says clear, and only there
    with pytest.raises(PolicyRefusedError, match="masked updates only"):
        story.send(0, records.TRAIN, None, story.ordinary(plan=PLAN), MODEL)
    assert not (tmp_path / "home").exists() or read_ledger(tmp_path / "home") == ()
    assert story.send(0, records.TRAIN, None, story.ordinary(plan=CLEAR), MODEL).content.array_records


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("num_corrupt = 2", "num_corrupt is 1"),
        ("min_cohort = 5", "num_clients is 4"),
        ("honest_minimum = 3", "minimum_accepted - num_corrupt is 2"),
        ("max_sketch_rows = 63", "sketch rows"),
        ("min_noise_multiplier = 9.0", "under this client's least"),
    ],
)
def test_a_deployed_clients_own_floors_hold_whatever_the_server_signs(deployed, line, reason):
    story = deployed(line)
    with pytest.raises(FedsecError, match=reason):
        story.give_roster(0)
        story.join(0, story.config())


def test_a_deployed_clients_budget_holds_and_nothing_is_trained(deployed, tmp_path, monkeypatch):
    story = deployed(cap=0.01)
    story.give_roster(0)
    attempt = story.attempt().run(Phase.MASKED_INPUT)
    monkeypatch.setattr("client.secagg_input.train_update", lambda *_: pytest.fail("trained"))
    with pytest.raises(FedsecError, match="epsilon"):
        attempt.ask(0)
    assert read_ledger(tmp_path / "home") == ()


def test_rows_of_one_update_are_counted_over_the_attempts(deployed):
    story = deployed("max_sketch_rows = 64")
    story.give_roster(0)
    story.attempt(1).run(Phase.CONSISTENCY_CHECK)
    with pytest.raises(PeerError, match="128 sketch rows of one update of 650 entries"):
        story.join(0, story.config(attempt=2, nonce=b"2" * 32))


def test_a_sketch_without_noise_leaves_only_where_the_client_says_so(deployed):
    plan = load_plan(overrides=[*BASE[:-4], "privacy.unit=none", "privacy.epsilon=inf", "training.steps=1", "training.batch_size=20",
                                "secagg.sketch_without_dp=true"])  # fmt: skip
    for lines, allowed in (
        (("allow_unprotected = true",), False),
        (("allow_unprotected = true", "allow_sketches_unprotected = true"), True),
    ):
        story = deployed(*lines, home=f"home-{allowed}")
        story.plan = plan
        assert story.give_roster(0).accepted
        request = story.ordinary(plan=plan, noise_multiplier=0.0)
        config = replace(story.config(nonce=bytes([allowed, 5]) * 16), terms_hash=bytes.fromhex(terms_of(request)))
        if allowed:
            assert story.join(0, config, noise_multiplier=0.0)
        else:
            with pytest.raises(PeerError, match="sketches of updates without"):
                story.join(0, config, noise_multiplier=0.0)


# --- What leaves --------------------------------------------------------------------------------------------------------------------


def test_a_reply_is_one_body_and_the_declared_weight_is_the_only_number_in_clear(story):
    attempt = story.attempt()
    replies = []
    original = story.send
    story.send = lambda *args: replies.append(original(*args)) or replies[-1]
    attempt.run(Phase.DONE)
    assert len(replies) == 6 * 4
    for reply in replies:
        assert set(reply.content.keys()) == {"secagg"}
        assert set(reply.content["secagg"]) == {"body"}
        assert b"client-" not in reply.content["secagg"]["body"]
        assert not reply.content.array_records
        assert not reply.content.metric_records
    for index in range(4):
        advert = Advert.decode(Envelope.decode(attempt.said[Phase.ADVERTISE_KEYS][index]).content)
        assert advert.weight == 20
        vector = np.frombuffer(Envelope.decode(attempt.said[Phase.MASKED_INPUT][index]).attachment, "<u4")
        with story.store(index) as store:
            plain = np.frombuffer(store.answer(RUN, 1), "<i4")
        assert np.abs(plain).max() < 2**27  # a plain update is short, a masked one is anywhere in the ring
        assert (np.abs(vector.view(np.int32).astype(np.int64)) > 2**28).mean() > 0.5


def secrets_of(memory):
    """Byte strings that must not get out of a client's memory."""
    phase = CALL_PHASES[memory["kind"]].decode(memory["data"])
    found, waiting = set(), [phase]
    while waiting:
        item = waiting.pop()
        if isinstance(item, tuple):
            waiting += item
        elif hasattr(item, "FIELDS"):
            names = [name for name, _ in item.FIELDS]
            hidden = {field.name for field in fields(item) if not field.repr}
            found |= {getattr(item, name) for name in names if name in hidden and isinstance(getattr(item, name), bytes)}
            waiting += [getattr(item, name) for name in names]
    return {secret for secret in found if len(secret) >= 16}


def test_no_secret_is_in_a_log_a_repr_or_an_error_reply(story, caplog):
    caplog.set_level(logging.DEBUG)
    attempt, found, told = story.attempt(), set(), []
    for phase in LATER:
        attempt.run(phase)
        found |= secrets_of(story.memory(0))
        shown = repr(CALL_PHASES[story.memory(0)["kind"]].decode(story.memory(0)["data"]))
        told.append(shown)
        for bad in (attempt.asked[phase][0][:-1], twisted(phase, attempt.asked[phase][0])[:-3], b"\0" * 40):
            with pytest.raises(FedsecError) as caught:
                attempt.ask(0, phase, bad)
            told.append(str(caught.value))
    assert len(found) > 8
    everything = caplog.text + "".join(told)
    for secret in found:
        for written in (secret.hex(), repr(secret)[2:-1], base64.b64encode(secret).decode(), str(int.from_bytes(secret, "little"))):
            assert written not in everything


def test_a_deployed_clients_inner_errors_stay_with_it(deployed, monkeypatch):
    story = deployed()
    monkeypatch.delenv("FEDSEC_SIMULATION")
    (Path(story.contexts[0].node_config["fedsec-settings"]).parent / "identity" / "key.pem").unlink()
    credentials._deployed.cache_clear()
    with pytest.raises(FedsecError) as caught:
        story.give_roster(0)
    assert "key.pem" not in str(caught.value)
    assert str(story.folder.path) not in str(caught.value)


NO_TORCH = """
import contextlib, os, pickle, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1]]
import importlib.util
spec = importlib.util.spec_from_file_location("stories", sys.argv[2])
stories = importlib.util.module_from_spec(spec); sys.modules["stories"] = stories; spec.loader.exec_module(stories)
from datetime import UTC, datetime
from fedsec.flower import compat
Phase = stories.Phase
def no_torch(where):
    assert "torch" not in sys.modules, where
here = Path(sys.argv[3])
os.environ["FEDSEC_SIMULATION"] = "1"
with contextlib.ExitStack() as cleanup, compat.task_identity(7):
    story = stories.Story(here, here / "ca", cleanup)
    no_torch("start")
    story.hand_out()
    no_torch("roster")
    attempt = story.attempt().run(Phase.MASKED_INPUT)
    no_torch("keys and shares")
    # Training happens in a child: the phases come back by the stores, as where a simulation is resumed.
    child = os.fork()
    if child == 0:
        said = {index: attempt.ask(index) for index in range(4)}
        assert "torch" in sys.modules
        (here / "said").write_bytes(pickle.dumps(said))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    for index, body in pickle.loads((here / "said").read_bytes()).items():
        attempt.server.receive(index, body)
        story.contexts[index] = story.context(index, {"partition-id": index, "num-partitions": 4})
    attempt.advance()
    for phase in (Phase.CONSISTENCY_CHECK, Phase.UNMASK, Phase.DONE):
        attempt.run(phase)
        no_torch(phase)
    attempt.ask(0, Phase.BLAME, stories.BlameRequest(context=attempt.server.context).encode())
    no_torch("blame")
print("ok")
"""


def test_only_the_stage_that_trains_imports_torch(tmp_path, identities):
    shutil.copytree(identities, tmp_path / "ca")
    root = Path(__file__).resolve().parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH, str(root), __file__, str(tmp_path)], check=False, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "ok\n", done.stderr
