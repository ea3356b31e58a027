"""One cohort's round with the real machines, members and server in this process, and what each of them spends.

Nothing is left out and nothing is memoised unless the caller passes a ``verify`` or a matrix that does. Only the transport is missing:
requests and answers are handed over as bytes, and counted. CPU time is that of the process, so the caller keeps it to one thread.

A member's time is kept by step. ``product`` is ``R·x`` alone and ``sketch`` the rest of that step; ``store`` is what is beside the protocol:
a client's state written to bytes and read back after each step.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsec.errors import RoundAborted
from fedsec.privacy.streams import KeyedStream
from fedsec.secagg.checks import read_config, sign_config
from fedsec.secagg.client_keys import JOIN_BYTES, deal_bytes, join
from fedsec.secagg.cohorts import CohortLimits
from fedsec.secagg.config import LocalPolicy, Member, RoundConfig, nonce_commitment
from fedsec.secagg.fixedpoint import BYTES_PER_ENTRY, FixedPoint, IntVector
from fedsec.secagg.labels import SEED_BYTES, Phase
from fedsec.secagg.opening import Opened, OpeningFailed, Secrets, combine_secrets, open_round
from fedsec.secagg.server import CohortServer
from fedsec.secagg.sketch import Sketch, SketchMatrix
from fedsec.signing import Signer, Verify, decode_public_key, verify_signature

STAGES = (
    Phase.ADVERTISE_KEYS, Phase.SHARE_KEYS, Phase.MASKED_INPUT, Phase.SKETCH, Phase.CONSISTENCY_CHECK, Phase.UNMASK,
)  # fmt: skip
PROTOCOL_STEPS = ("join", "share_keys", "accept_dealings", "encode", "upload", "sketch", "consent", "unmask")
"""A member's steps without training, ``R·x`` and storing."""
UPDATE_NORM = 10.0

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class MeteredMatrix(SketchMatrix):
    """R that notes the CPU seconds of each product."""

    spent: list[float] = field(default_factory=list, repr=False, compare=False)

    def product(self, x: Any) -> npt.NDArray[np.int64]:
        """See :class:`SketchMatrix`."""
        started = time.process_time()
        rows = super().product(x)
        self.spent.append(time.process_time() - started)
        return rows


@dataclass(frozen=True, kw_only=True)
class LyingMatrix(MeteredMatrix):
    """What a client that lies about one row of its sketch uses."""

    def product(self, x: Any) -> npt.NDArray[np.int64]:
        """One too much in the first row."""
        rows = super().product(x)
        rows[0] += 1
        return rows


def make_config(
    limits: CohortLimits, *, cohort: int = 0, num_cohorts: int = 1, dimension: int, num_rows: int, nonce: bytes, roster_hash: bytes = bytes(32)
) -> RoundConfig:  # fmt: skip
    """CONFIG of a cohort."""
    fixed = FixedPoint.for_norm(UPDATE_NORM, num_clients=limits.num_clients, dimension=dimension)
    return RoundConfig(
        federation="bench",
        cohort=cohort,
        num_cohorts=num_cohorts,
        run_id="bench",
        server_round=1,
        attempt=1,
        model_hash=bytes(32),
        terms_hash=bytes(32),
        roster_hash=roster_hash,
        num_clients=limits.num_clients,
        num_corrupt=limits.num_corrupt,
        minimum_accepted=limits.minimum_accepted,
        threshold=limits.threshold,
        dimension=dimension,
        scale=fixed.scale,
        norm_bound=fixed.norm_bound,
        num_rows=num_rows,
        norm_slack=2.0,
        weight_limit=100,
        rule="mean",
        nonce_commitment=nonce_commitment(nonce),
        time_s=0,
    )


def base_update(dimension: int) -> Vector:
    """A random update, whose rolled copies serve as those of all members: making random numbers is not what is measured."""
    drawn = np.random.default_rng(0).standard_normal(dimension, dtype=np.float32)
    return drawn * np.float32(UPDATE_NORM / 2 / np.linalg.norm(drawn))


@dataclass(kw_only=True, eq=False)
class CohortRun:
    """A round, stage by stage.

    Attributes:
        config: of the cohort.
        signers: of its members, in order.
        members: the same as the roster names them.
        base: see :func:`base_update`.
        server_signer: signs CONFIG.
        drops: the first stage that a member does not answer; for those that drop out.
        verify: of members and server.
        share_matrix: one R for all members, kept in memory, instead of one for each.
        matrix_cache: R by its seed, where it is shared.
        cold_keys: let every member decode its peers' identity keys by itself, as in a process of its own.
        liar: a member whose sketch is wrong.
        store: write and read every member's state after each step.
        spent: CPU seconds by member and step.
        up: bytes that each member sent.
        down: bytes that each was sent, without the model.
        server_spent: CPU seconds of the server by step.
        failure: why the cohort gave up, if it did.
    """

    config: RoundConfig
    signers: Sequence[Signer]
    members: tuple[Member, ...]
    base: Vector
    server_signer: Signer = field(default_factory=Signer.generate)
    drops: Mapping[int, Phase] = field(default_factory=dict)
    verify: Verify = verify_signature
    share_matrix: bool = True
    cold_keys: bool = True
    matrix_cache: dict[bytes, MeteredMatrix] = field(default_factory=dict)
    liar: int | None = None
    store: bool = False
    spent: dict[int, dict[str, float]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(float)))
    up: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    down: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    server_spent: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    failure: str = ""
    encoded: dict[int, IntVector] = field(default_factory=dict)
    secrets: Secrets | None = None
    opened: Opened | None = None
    _states: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.server = CohortServer(config=self.config, members=self.members, verify=self.verify)

    @classmethod
    def of(cls, limits: CohortLimits, *, dimension: int, num_rows: int, nonce: bytes, **settings: Any) -> CohortRun:
        """A federation of one cohort with fresh keys."""
        signers = [Signer.generate() for _ in range(limits.num_clients)]
        members = tuple(Member(client_id=f"client-{place:04d}", public_key=signer.public_key) for place, signer in enumerate(signers))
        config = make_config(limits, dimension=dimension, num_rows=num_rows, nonce=nonce)
        return cls(config=config, signers=signers, members=members, base=base_update(dimension), **settings)

    # --- Stages -----------------------------------------------------------------------------------------------------------------

    def set_up(self) -> None:
        """ADVERTISE_KEYS and SHARE_KEYS."""
        for index, request in self._requests():
            self._step(index, "join", lambda index=index, request=request: self._join(index, request))
        self._close()
        threshold = self.config.threshold
        for index, request in self._requests():
            if self.cold_keys:
                decode_public_key.cache_clear()
            self._step(
                index,
                "share_keys",
                lambda index=index, request=request: self._states[index].share_keys(
                    request, signer=self.signers[index], verify=self.verify, randomness=secrets.token_bytes(deal_bytes(threshold))
                ),
            )
        self._close()

    def _join(self, index: int, request: bytes) -> tuple[Any, bytes]:
        config = read_config(request, server_key=self.server_signer.public_key, verify=self.verify)
        return join(
            config, self.members, index,
            policy=LocalPolicy(), weight=10, signer=self.signers[index], randomness=secrets.token_bytes(JOIN_BYTES),
        )  # fmt: skip

    def upload(self) -> None:
        """MASKED_INPUT."""
        for index, request in self._requests():
            with self._timed(index, "accept_dealings"):
                ready = self._states[index].accept_dealings(request, verify=self.verify)
            update = np.roll(self.base, index)
            with self._timed(index, "encode"):
                rounding = KeyedStream(secrets.token_bytes(32)).random_bytes(BYTES_PER_ENTRY * self.config.dimension)
                self.encoded[index] = self.config.fixed_point.encode(update, rounding)
            self._step(
                index, "upload", lambda index=index, ready=ready: ready.upload(self.encoded[index], signer=self.signers[index])
            )  # fmt: skip
        self._close()

    def root(self) -> bytes | None:
        """Of the uploads, unless the cohort failed."""
        return None if self.failure else self.server.input_root()

    def sketch(self, roots: Sequence[bytes], nonce: bytes) -> dict[int, Sketch]:
        """SKETCH; the sketches that pass the norm gate."""
        if self.failure:
            return {}
        self.server.open_nonce(roots, nonce)
        for index, request in self._requests():
            used: list[MeteredMatrix] = []

            def matrix(seed: bytes, rows: int, dimension: int, index: int = index, used: list[MeteredMatrix] = used) -> SketchMatrix:
                used.append(self._matrix(index, seed, rows, dimension))
                return used[0]

            self._step(
                index,
                "sketch",
                lambda index=index, request=request, matrix=matrix: self._states[index].sketch(
                    request, self.encoded[index], signer=self.signers[index], salt=secrets.token_bytes(SEED_BYTES), matrix=matrix
                ),
            )
            self.spent[index]["product"] += used[0].spent[-1]
            self.spent[index]["sketch"] -= used[0].spent[-1]
        with self._timed_server("screen"):
            return self.server.screen()

    def _matrix(self, index: int, seed: bytes, rows: int, dimension: int) -> MeteredMatrix:
        if index == self.liar:
            return LyingMatrix(seed=seed, num_rows=rows, dimension=dimension)
        if not self.share_matrix:
            return MeteredMatrix(seed=seed, num_rows=rows, dimension=dimension)
        if seed not in self.matrix_cache:
            self.matrix_cache[seed] = MeteredMatrix(seed=seed, num_rows=rows, dimension=dimension, keep=True)
        return self.matrix_cache[seed]

    def finish(self, accepted: Sequence[int]) -> None:
        """From the decision to the opened sum."""
        if self.failure:
            return
        try:
            with self._timed_server("decide"):
                self.server.decide(accepted)
        except RoundAborted as error:
            self.failure = error.reason
            return
        for index, request in self._requests():
            self._step(
                index,
                "consent",
                lambda index=index, request=request: self._states[index].consent(request, signer=self.signers[index], verify=self.verify),
            )
        self._close()
        for index, request in self._requests():
            self._step(
                index,
                "unmask",
                lambda index=index, request=request: self._states[index].unmask(request, signer=self.signers[index], verify=self.verify),
            )
        self._close()
        self._open()

    def _open(self) -> None:
        if self.failure:
            return
        try:
            with self._timed_server("combine"):
                self.secrets, bad = combine_secrets(self.server)
        except RoundAborted as error:
            self.failure = error.reason
            return
        assert not bad
        matrix = MeteredMatrix(seed=self.server.matrix_seed, num_rows=self.config.num_rows, dimension=self.config.dimension)
        try:
            with self._timed_server("open"):
                self.opened = open_round(self.server, self.secrets, matrix=lambda *_: matrix)
        except OpeningFailed:
            if self.liar is None:
                raise
        self.server_spent["check"] += matrix.spent[0]
        self.server_spent["open"] -= matrix.spent[0]

    def check(self) -> None:
        """Stop the benchmark if the opened sum is not the sum of what the accepted members encoded."""
        if not self.failure and self.liar is None:
            assert self.opened is not None
            total = np.zeros(self.config.dimension, dtype=np.int64)
            for index in self.opened.accepted:
                total += self.encoded[index]
            if not np.array_equal(total, self.opened.total):
                raise SystemExit("the opened sum is not the sum of the accepted updates")

    def whole_round(self, nonce: bytes) -> CohortRun:
        """All stages of a federation of one cohort, everybody accepted."""
        self.set_up()
        self.upload()
        root = self.root()
        passed = self.sketch([root], nonce) if root is not None else {}
        self.finish(sorted(passed))
        self.check()
        if self.failure:
            raise SystemExit(f"the round failed: {self.failure}")
        return self

    # --- What it took -----------------------------------------------------------------------------------------------------------

    def complete(self) -> list[int]:
        """The members that took part from the first stage to the last."""
        return [index for index in range(len(self.members)) if index not in self.drops and "unmask" in self.spent[index]]

    def client_seconds(self, index: int, steps: Sequence[str] = PROTOCOL_STEPS) -> float:
        """CPU of one member's steps."""
        return sum(self.spent[index].get(step, 0.0) for step in steps)

    # --- Small helpers ----------------------------------------------------------------------------------------------------------

    def _present(self) -> list[int]:
        stage = STAGES.index(self.server.phase)
        return [index for index in self.server.asked() if index not in self.drops or STAGES.index(self.drops[index]) > stage]

    def _requests(self) -> Iterator[tuple[int, bytes]]:
        if self.failure:
            return
        with self._timed_server("requests"):
            signed = sign_config(self.config, self.server_signer) if self.server.phase is Phase.ADVERTISE_KEYS else b""
            requests = self.server.requests(signed_config=signed)
        for index in self._present():
            self.down[index] += len(requests[index])
            yield index, requests[index]

    def _step(self, index: int, name: str, step: Callable[[], tuple[Any, bytes]]) -> None:
        with self._timed(index, name):
            self._states[index], answer = step()
        if self.store:
            with self._timed(index, "store"):
                self._states[index] = type(self._states[index]).decode(self._states[index].encode())
        self.up[index] += len(answer)
        with self._timed_server("receive"):
            self.server.receive(index, answer)

    def _close(self) -> None:
        if self.failure:
            return
        try:
            with self._timed_server("close"):
                self.server.close()
        except RoundAborted as error:
            self.failure = error.reason

    @contextlib.contextmanager
    def _timed(self, index: int, name: str) -> Iterator[None]:
        started = time.process_time()
        yield
        self.spent[index][name] += time.process_time() - started

    @contextlib.contextmanager
    def _timed_server(self, name: str) -> Iterator[None]:
        started = time.process_time()
        try:
            yield
        finally:
            self.server_spent[name] += time.process_time() - started
