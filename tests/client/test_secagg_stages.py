"""A client's handlers of secure aggregation against a hostile server: each attack of the design's list that lives here, as one story.

The server is ours, with its own machines, and cheats in between; clients are the real ClientApp with their real stores. ``Story`` plays one run.
"""

import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, RecordDict

from client.app import app
from fedsec.clientstore.inspect import read_ledger
from fedsec.clientstore.store import ClientStore
from fedsec.data.federated import federated_data
from fedsec.errors import FedsecError, PeerError
from fedsec.flower import compat, records
from fedsec.flower.secure_records import ROSTER, STAGES, RosterOffer, RosterReply, make_stage_request, stage_type
from fedsec.flower.stages import RoundInput
from fedsec.identity.ca import CertificateAuthority
from fedsec.identity.roster import Roster, RosterMember, make_roster
from fedsec.merkle import merkle_root
from fedsec.plan.load import load_plan
from fedsec.policy import PolicyRefusedError
from fedsec.runfolder import prepare_run_folder
from fedsec.secagg.checks import sign_config
from fedsec.secagg.cohorts import shamir_threshold
from fedsec.secagg.config import nonce_commitment
from fedsec.secagg.labels import Phase
from fedsec.secagg.messages import (
    Advert,
    BlameRequest,
    ConsistencyRequest,
    Envelope,
    MaskedInputRequest,
    ShareKeysRequest,
    SketchRequest,
    UnmaskRequest,
)
from fedsec.secagg.server import CohortServer
from fedsec.signing import Signer
from fedsec.sim.identities import client_name, ensure_identities, load_client, load_federation, load_server_signer
from fedsec.translog.entries import EntryKind, LogEntry
from fedsec.translog.log import TransparencyLog
from fedsec.vectors import arrays_digest
from server.secure import build_secure_rounds
from server.session import Session

SIGMA = 8.0
BASE = ["federation.num_clients=4", "federation.rounds=4", "secagg.num_corrupt=1", "secagg.sketch_rows=64", f"privacy.noise_multiplier={SIGMA}",
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


@pytest.fixture(scope="module")
def data():
    return federated_data(PLAN.data, num_clients=4, seed=PLAN.federation.seed)


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
                    self.said[phase][index] = self.story.stage(index, phase, body, attempt=self)
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
        return self.story.stage(index, phase, self.asked[phase][index] if body is None else body, attempt=self, **changes)


class Story:
    """One run: identities, log, clients 0 to 3 of the cohort, which are partitions 0 to 3."""

    def __init__(self, path, identities, data, cleanup, plan=PLAN):
        self.plan = plan
        self.folder = prepare_run_folder(path / "run", plan, resume=False)
        shutil.copytree(identities, self.folder.path / "identities")
        self.identities = self.folder.path / "identities"
        self.secure = build_secure_rounds(
            None, plan, self.folder, data, dimension=DIMENSION, noise_multiplier=SIGMA, session=Session(), cleanup=cleanup
        )
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
        return app(message=message, context=context or self.contexts[index])

    def stage(self, index, phase, body, *, attempt=None, arrays=MODEL, context=None, **changes):
        """The body of the client's answer in one stage."""
        config = attempt.config if attempt is not None else None
        at = {"server_round": config.server_round, "attempt": config.attempt, "run_id": config.run_id} if config is not None else {}
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
        self.secure.journal.time_s = self.secure.now_s() if server_round == 1 and attempt == 1 else self.secure.journal.time_s
        request = self.ordinary(server_round=server_round, attempt=attempt, model=model)
        given = RoundInput(request=request, arrays=None, model_bytes=0, terms_hash=bytes.fromhex(terms_of(request)))
        config = self.secure._config(given, attempt, 0, nonce)
        return replace(config, **changes) if changes else config

    def attempt(self, number=1, *, server_round=1, nonce=None, **changes):
        nonce = nonce or bytes([server_round, number]) * 16
        return Attempt(self, self.config(nonce=nonce, server_round=server_round, attempt=number, **changes), nonce)

    def join(self, index, config, *, signer=None, **changes):
        """One client's answer to a CONFIG."""
        at = {"server_round": config.server_round, "attempt": config.attempt, "run_id": config.run_id, **changes}
        return self.stage(index, Phase.ADVERTISE_KEYS, sign_config(config, signer or self.secure.signer), **at)

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
def story(tmp_path, identities, data, monkeypatch):
    monkeypatch.setenv("FEDSEC_SIMULATION", "1")
    with contextlib.ExitStack() as cleanup, compat.task_identity(7):
        yield Story(tmp_path, identities, data, cleanup).hand_out()


def test_an_honest_round(story):
    attempt = story.attempt().run(Phase.DONE)
    assert attempt.server.accepted == (0, 1, 2, 3)
