"""Honest rounds to attack: a cohort of clients and its server, driven phase by phase, with whatever is needed to cheat in between.

A test gets this module by the fixture ``rounds`` (see conftest.py)::

    fed = rounds.Federation(num_clients=6)                    # members 0..5, c = 1, d = 40, k = 16; t follows
    fed.run(Phase.SKETCH)                                     # honest up to SKETCH: asked in SKETCH, nobody has answered
    fed.run(Phase.SKETCH, absent={Phase.MASKED_INPUT: [3]})   # member 3 falls silent from MASKED_INPUT on
    fed.requests[Phase.SKETCH][2]                             # bytes that the server sent to member 2
    fed.messages[Phase.MASKED_INPUT][2]                       # bytes that member 2 sent
    fed.before[Phase.SKETCH][2]                               # member 2's state when it is asked: here an ``Uploaded``
    fed.states[2], fed.server, fed.config, fed.members, fed.signers[2], fed.encoded[2], fed.verify, fed.nonce
    fed.step(Phase.SKETCH, 2, request)                        # (next state, message) of member 2 for any request; stores nothing
    fed.answer(2)                                             # the same for the true request; stores state and message, sends nothing
    fed.deliver(2, message)                                   # to the server
    fed.advance(accept=[0, 1, 2, 3])                          # ends the server's phase, opens the nonce, makes the next requests
    fed.finish(accept=None)                                   # from wherever it is to UNMASK's end: an ``Opened``
    fed.expected(accepted)                                    # the true sum of the encoded updates
    fed.fork()                                                # an independent copy: cheat in one, be honest in the other
    fed.sign(2, statement, attachment=b"")                    # bytes of any statement under member 2's signature

``Federation(name=…)`` draws all randomness from the name: equal names give equal keys, seeds and updates (signatures differ: ECDSA is
randomised). Keyword arguments that CONFIG knows (``attempt=2``, ``num_rows=8``, ``run_id="other"``, ``num_cohorts=2``, ``cohort=1`` …)
go into it. Whenever a client's state is stored it went through ``encode`` and ``decode`` first, and must be equal afterwards.

With ``num_cohorts > 1`` the nonce is not opened by ``advance``: see ``group(...)``, which makes one GroupServer of several federations.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

from fedsec.secagg.checks import sign_config, sign_statement
from fedsec.secagg.client_keys import JOIN_BYTES, deal_bytes, join
from fedsec.secagg.cohorts import CohortLimits
from fedsec.secagg.config import LocalPolicy, Member, RoundConfig, nonce_commitment
from fedsec.secagg.group import GroupServer
from fedsec.secagg.labels import Phase
from fedsec.secagg.opening import Opened, combine_secrets, open_round
from fedsec.secagg.server import CohortServer
from fedsec.signing import Signer, VerificationCache

ORDER = (Phase.ADVERTISE_KEYS, Phase.SHARE_KEYS, Phase.MASKED_INPUT, Phase.SKETCH, Phase.CONSISTENCY_CHECK, Phase.UNMASK, Phase.DONE)
NORM_BOUND = 1 << 20
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def expand(name: str, size: int) -> bytes:
    """Reproducible bytes."""
    return hashlib.shake_256(name.encode()).digest(size)


def signer_of(name: str) -> Signer:
    """A signer whose key depends on the name alone."""
    number = int.from_bytes(expand(f"signer/{name}", 40), "big") % (_P256_ORDER - 1) + 1
    return Signer(ec.derive_private_key(number, ec.SECP256R1()))


class Federation:
    """One cohort: its clients, its server, and all that passed between them; see the module."""

    def __init__(
        self,
        *,
        num_clients: int = 5,
        num_corrupt: int = 1,
        dimension: int = 40,
        name: str = "federation",
        policy: LocalPolicy | None = None,
        weights: Sequence[int] | None = None,
        nonce: bytes | None = None,
        **config: Any,
    ) -> None:
        self.name = name
        self.policy = policy or LocalPolicy()
        self.nonce = nonce or expand(f"{name}/nonce", 32)
        limits = CohortLimits.of(num_clients, num_corrupt)
        fields: dict[str, Any] = {
            "federation": "example.org", "cohort": 0, "num_cohorts": 1, "run_id": "run-1", "server_round": 1, "attempt": 1,
            "model_hash": expand("model", 32), "terms_hash": expand("terms", 32), "roster_hash": expand("roster", 32),
            "num_clients": num_clients, "num_corrupt": num_corrupt, "minimum_accepted": limits.minimum_accepted,
            "threshold": limits.threshold, "dimension": dimension, "scale": 1024.0, "norm_bound": NORM_BOUND, "num_rows": 16,
            "norm_slack": 3.5, "weight_limit": 100, "rule": "mean", "nonce_commitment": nonce_commitment(self.nonce), "time_s": 1_900_000_000,
        }  # fmt: skip
        self.config = RoundConfig(**{**fields, **config})
        cohort = self.config.cohort
        self.signers = [signer_of(f"{cohort}/{index}") for index in range(num_clients)]
        self.members = tuple(
            Member(client_id=f"client-{cohort}-{index}", public_key=signer.public_key) for index, signer in enumerate(self.signers)
        )
        self.server_signer = signer_of("server")
        self.signed_config = sign_config(self.config, self.server_signer)
        self.verify = VerificationCache()
        self.server = CohortServer(config=self.config, members=self.members, verify=self.verify)
        self.weights = list(weights) if weights else [10 + index for index in range(num_clients)]
        draw = np.random.default_rng(list(expand(f"{cohort}/updates", 16)))
        self.updates = [(50 * draw.normal(size=dimension)).astype(np.float32) for _ in range(num_clients)]
        self.encoded = [
            self.config.fixed_point.encode(update, expand(f"{cohort}/rounding/{index}", 4 * dimension))
            for index, update in enumerate(self.updates)
        ]
        self.states: dict[int, Any] = {}
        self.ready: dict[int, Any] = {}
        self.before: dict[Phase, dict[int, Any]] = {phase: {} for phase in ORDER}
        self.requests: dict[Phase, dict[int, bytes]] = {}
        self.messages: dict[Phase, dict[int, bytes]] = {phase: {} for phase in ORDER}
        self._ask()

    # --- the honest round -------------------------------------------------------------------------------------------------------

    def run(
        self, until: Phase = Phase.DONE, *, absent: Mapping[Phase, Collection[int]] | None = None, accept: Collection[int] | None = None
    ) -> Federation:
        """Be honest until the server is in phase ``until``; members in ``absent`` fall silent from their phase on."""
        gone: set[int] = set()
        while self.server.phase is not until:
            gone |= set((absent or {}).get(self.server.phase, ()))
            for index in self.server.asked():
                if index not in gone:
                    self.answer(index)
                    self.deliver(index, self.messages[self.server.phase][index])
            self.advance(accept=accept)
        return self

    def finish(self, *, absent: Mapping[Phase, Collection[int]] | None = None, accept: Collection[int] | None = None) -> Opened:
        """Be honest to the end, and open."""
        self.run(absent=absent, accept=accept)
        return self.open()

    def open(self) -> Opened:
        """Combine and open, after UNMASK."""
        secrets, bad = combine_secrets(self.server)
        assert not bad
        return open_round(self.server, secrets)

    def answer(self, index: int, request: bytes | None = None) -> bytes:
        """A member answers the current request (or the one given): its state moves on, nothing is sent."""
        phase = self.server.phase
        if phase is not Phase.ADVERTISE_KEYS:
            self.before[phase][index] = self.states[index]
        state, message = self.step(phase, index, self.requests[phase][index] if request is None else request)
        self.store(index, state)
        self.messages[phase][index] = message
        return message

    def store(self, index: int, state: Any) -> None:
        """Keep a member's state as a client does: as bytes."""
        read = type(state).decode(state.encode())
        assert read == state
        self.states[index] = read

    def step(self, phase: Phase, index: int, request: bytes, *, state: Any = None) -> tuple[Any, bytes]:
        """What a member's step of this phase makes of a request, from its present state or the one given."""
        signer, verify = self.signers[index], self.verify
        if phase is Phase.ADVERTISE_KEYS:
            return join(
                self.config, self.members, index, policy=self.policy, weight=self.weights[index], signer=signer,
                randomness=self.draw("join", index, JOIN_BYTES),
            )  # fmt: skip
        state = self.states[index] if state is None else state
        if phase is Phase.SHARE_KEYS:
            return state.share_keys(
                request, signer=signer, verify=verify, randomness=self.draw("deal", index, deal_bytes(self.config.threshold))
            )  # fmt: skip
        if phase is Phase.MASKED_INPUT:
            ready = state.accept_dealings(request, verify=verify)
            assert type(ready).decode(ready.encode()) == ready
            self.ready[index] = ready
            return ready.upload(self.encoded[index], signer=signer)
        if phase is Phase.SKETCH:
            return state.sketch(request, self.encoded[index], signer=signer, salt=self.draw("salt", index, 32))
        if phase is Phase.CONSISTENCY_CHECK:
            return state.consent(request, signer=signer, verify=verify)
        assert phase is Phase.UNMASK
        return state.unmask(request, signer=signer, verify=verify)

    def deliver(self, index: int, message: bytes) -> None:
        """Hand a message to the server."""
        self.server.receive(index, message)

    def advance(self, *, accept: Collection[int] | None = None) -> None:
        """End the server's phase, with A = ``accept`` (default: all that passed the gate) in SKETCH; then ask what comes next."""
        if self.server.phase is Phase.SKETCH:
            self.server.decide(list(self.server.screen()) if accept is None else accept)
        else:
            self.server.close()
        if self.server.phase is Phase.SKETCH and self.config.num_cohorts == 1:
            self.server.open_nonce([self.server.input_root()], self.nonce)
        if not (self.server.phase is Phase.SKETCH and not self.server.view):
            self._ask()

    def _ask(self) -> None:
        if self.server.phase is not Phase.DONE:
            self.requests[self.server.phase] = self.server.requests(signed_config=self.signed_config)

    # --- tools ------------------------------------------------------------------------------------------------------------------

    def draw(self, what: str, index: int, size: int) -> bytes:
        """The bytes that a member uses for something: its secrets are known to the test."""
        return expand(f"{self.name}/{self.config.cohort}/{what}/{index}", size)

    def expected(self, accepted: Collection[int]) -> Any:
        """The true sum."""
        return np.sum([self.encoded[index] for index in accepted], axis=0)

    def sign(self, index: int, statement: Any, *, attachment: bytes = b"") -> bytes:
        """A message of a member that says whatever it likes."""
        return sign_statement(statement, self.signers[index], attachment=attachment)

    def fork(self) -> Federation:
        """An independent copy: the server's state is copied deeply, client states are values."""
        other = copy.copy(self)
        other.server = copy.deepcopy(self.server, memo={id(self.verify): self.verify})
        other.states, other.ready = dict(self.states), dict(self.ready)
        other.before = {phase: dict(states) for phase, states in self.before.items()}
        other.requests = {phase: dict(requests) for phase, requests in self.requests.items()}
        other.messages = {phase: dict(messages) for phase, messages in self.messages.items()}
        return other


def group(federations: Collection[Federation]) -> GroupServer:
    """One group of several cohorts: give each ``num_cohorts``, its own ``cohort``, and the same ``nonce``."""
    (nonce,) = {federation.nonce for federation in federations}
    return GroupServer(cohorts={federation.config.cohort: federation.server for federation in federations}, nonce=nonce)


def cohorts_of_a_group(count: int, *, name: str = "group", **kwargs: Any) -> list[Federation]:
    """Federations that fit ``group``."""
    nonce = expand(f"{name}/nonce", 32)
    return [Federation(name=name, cohort=cohort, num_cohorts=count, nonce=nonce, **kwargs) for cohort in range(count)]


def run_group(federations: Sequence[Federation], servers: GroupServer, until: Phase = Phase.DONE, *, absent: Any = None) -> None:
    """Be honest in all running cohorts until they are in phase ``until``; ``absent[phase]`` holds (cohort, index)."""
    while servers.running() and any(server.phase is not until for server in servers.running().values()):
        for federation in federations:
            if federation.config.cohort in servers.running():
                federation._ask()
                phase = federation.server.phase
                gone = {place for p in ORDER[: ORDER.index(phase) + 1] for place in (absent or {}).get(p, ())}
                for index in federation.server.asked():
                    if (federation.config.cohort, index) not in gone:
                        federation.answer(index)
                        federation.deliver(index, federation.messages[phase][index])
        phases = {server.phase for server in servers.running().values()}
        if phases == {Phase.SKETCH}:
            servers.decide()
        else:
            servers.close_phase()
            if phases == {Phase.MASKED_INPUT}:
                servers.open_nonce()
