"""The server's round loop over a Flower ``Grid``: ask, wait, validate, aggregate, evaluate, checkpoint.

1. Clients are known by their client id, found out once before the first round; node ids are only addresses. Everything that
   depends on order depends on client ids, so every engine gives the same model.
2. One bad client never spoils a round: its reply is refused with the reason, and the round goes on with the others.
3. Fewer valid updates than ``federation.min_clients``: the model stays as it was, and the row says so.
4. Epsilon counts a client for every round in which it was *asked*: whether its reply arrived does not undo what it released.
5. A round ends with a checkpoint; a stop or a crash in the middle of one costs that round only, and a resumed run asks the same
   question again, which clients answer with the update that they stored.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid

from fedsec.checkpoint import CheckpointStore
from fedsec.codec import digest_json
from fedsec.defence import Defence
from fedsec.errors import PeerError, RoundAborted
from fedsec.flower.attendance import Attendance
from fedsec.flower.exchange import StopRequested, exchange
from fedsec.flower.muster import DEPLOYED_POLL_S, Muster
from fedsec.flower.records import (
    EVALUATE,
    PERSONALISE,
    TRAIN,
    RoundRequest,
    arrays_to_record,
    make_request,
    plan_to_canonical,
    read_site_metrics,
    read_update,
    sender_of,
)
from fedsec.flower.secure_outcome import SecureOutcome
from fedsec.flower.stage_calls import RoundInput
from fedsec.flower.stages import SecureRounds
from fedsec.flower.state import ServerState
from fedsec.plan.model import Plan
from fedsec.results import CohortRow, RoundRow, ScreeningRow, SecaggRow, SiteMetrics
from fedsec.robust.reputation_records import Fault
from fedsec.robust.validation import MAX_BATCH_SIZE, ValidUpdate, validate_update
from fedsec.vectors import FloatArray, Layout, arrays_digest

Segments = tuple[tuple[float, float, int], ...]

NEXT_LIST_S = 10.0
"""How long a round waits for the CA's next list after somebody was revoked."""


@dataclass(frozen=True, kw_only=True)
class CentralEvaluation:
    """The released model on the server's own test set."""

    accuracy: float
    loss: float
    recall: tuple[float | None, ...]
    site_accuracy: dict[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Who took part in a round: clients asked, updates in the mean, refused answers as (client id, reason), and clients without an answer."""

    selected: int
    valid: int
    refused: tuple[tuple[str, str], ...]
    dropped: int


@dataclass(frozen=True, kw_only=True)
class LoopServices:
    """What the loop needs from outside, so that it trains nothing, reads no clock but for waiting, and prints nothing.

    Attributes:
        evaluate: arrays of the released model → how good it is.
        epsilon: spends → (PRV, RDP) epsilon at the plan's delta; called only with privacy on.
        on_round: told every finished round.
        on_answers: told (answers so far, clients asked) while a round waits.
        stop: set to end the run after the current wait.
        note: told, in a sentence, what an operator should know.
        keep_evidence: keeps what a client's message shows, and says where: (round, client id, reason, reply) → path in the result folder.
    """

    evaluate: Callable[[dict[str, FloatArray]], CentralEvaluation]
    epsilon: Callable[[Segments], tuple[float, float]]
    on_round: Callable[[RoundRow], None]
    stop: threading.Event
    on_answers: Callable[[int, int], None] = lambda _answered, _asked: None
    note: Callable[[str], None] = lambda _text: None
    keep_evidence: Callable[[int, str, str, Message], str] = lambda _round, _client, _reason, _reply: ""


@dataclass(kw_only=True, eq=False)
class FederationLoop:
    """One run of one plan.

    Attributes:
        grid: Flower's way to the nodes.
        plan: what to run.
        run_id: fedsec's id of the run.
        noise_multiplier: calibrated sigma over clip norm; 0 without privacy.
        layout: names and shapes of the shared parameters.
        state: from the start or from a checkpoint.
        checkpoints: where rounds are kept.
        services: see :class:`LoopServices`.
        defence: who counts.
        weight_limit: largest batch size that a client may declare.
        simulation_dir: told to simulated clients.
        secure: secure aggregation; None where updates travel in clear.
        root_update: the server's own model difference on its trusted records, for a rule that needs one; None: it has none.
        attendance: who may take part; None in a simulation.
        clients: client id → node id, after :meth:`join`.
        muster: knows them; made by :meth:`join`.
    """

    grid: Grid
    plan: Plan
    run_id: str
    noise_multiplier: float
    layout: Layout
    state: ServerState
    checkpoints: CheckpointStore
    services: LoopServices
    defence: Defence
    weight_limit: int = MAX_BATCH_SIZE
    simulation_dir: str = ""
    secure: SecureRounds | None = None
    root_update: Callable[[FloatArray, int], npt.NDArray[np.float64]] | None = None
    attendance: Attendance | None = None
    clients: dict[str, int] = field(default_factory=dict)
    muster: Muster | None = None
    _stayed: dict[str, str] = field(default_factory=dict, init=False)
    """Who was gone when no next list was to be had."""

    def run(self) -> bool:
        """All rounds that are left; True if they were all run, False if someone asked to stop.

        Raises:
            RoundAborted: too few clients ever joined.
            StorageError: a checkpoint could not be written.
        """
        try:
            self.join()
            while self.state.server_round < self.plan.federation.rounds:
                self.one_round(self.state.server_round + 1)
        except StopRequested:
            return False
        return True

    def join(self) -> None:
        """Wait for the federation's nodes and learn their client ids.

        Raises:
            RoundAborted: too few clients joined.
            StopRequested: someone asked the run to stop.
        """
        muster = self._muster()
        found = muster.join()
        if len(self.clients) < self.plan.federation.min_clients:
            first = f"; the first fault was: {muster.faults[0]}" if muster.faults else ""
            raise RoundAborted(f"{len(self.clients)} of {found} nodes joined, {self.plan.federation.min_clients} are needed{first}")

    def _muster(self) -> Muster:
        if self.muster is None:
            self.muster = Muster(
                grid=self.grid,
                federation=self.plan.federation,
                request=self._request(0, ""),
                secure=self.secure,
                attendance=self.attendance,
                weight_limit=self.weight_limit,
                stop=self.services.stop,
                note=self.services.note,
                clients=self.clients,
            )
        return self.muster

    def one_round(self, server_round: int) -> None:
        """One round, in clear or masked, to its checkpoint."""
        muster = self._muster()
        muster.refresh(self.plan.federation.min_clients)
        self._follow_list(muster)
        gone, present = muster.gone(), muster.present()
        if len(set(present) - self.defence.excluded) < self.plan.federation.min_clients:
            left = f"; revoked: {', '.join(sorted(gone))}" if gone else ""
            raise RoundAborted(
                f"too few clients are left before round {server_round}: {len(present)} are here, "
                f"{len(self.defence.excluded)} are excluded for proven faults{left}"
            )
        if self.secure is not None:
            asked = dict(self.state.asked)
            try:
                self._secure_round(self.secure, server_round, present, gone)
            except RoundAborted:
                if muster.gone() == gone:
                    raise
                self.state.asked = (
                    asked  # somebody was revoked meanwhile, and the others refused: the same round is asked again by the next list
                )
        else:
            self._open_round(server_round, present, gone)

    def _follow_list(self, muster: Muster) -> None:
        """Where somebody on the list is gone, wait a little for the CA's next list and go over to it; without one the round goes on with the old."""
        if self.secure is None or not self._lists(muster.gone()) or muster.gone() == self._stayed:
            return
        deadline = time.monotonic() + NEXT_LIST_S
        while self._lists(muster.gone()) and time.monotonic() < deadline:
            if self.secure.go_over():
                muster.offer_again()
                self.services.note(f"the run goes by the CA's next list, with {self.secure.membership.num_clients} clients")
                return
            if self.services.stop.wait(DEPLOYED_POLL_S):
                raise StopRequested
        self._stayed = muster.gone()
        self.services.note(
            "there is no next list of the CA's that this plan can go by: the run keeps its list, and who is gone counts as silent"
        )

    def _lists(self, gone: Mapping[str, str]) -> bool:
        """Whether the list that the server goes by has somebody who is gone."""
        return self.secure is not None and any(name in gone for name in self.secure.membership.certificates)

    def _secure_round(self, secure: SecureRounds, server_round: int, present: dict[str, int], gone: dict[str, str]) -> None:
        """The sum over whom secure aggregation accepted, applied like any other."""
        started = time.perf_counter()
        arrays = self.layout.unflatten(self.state.vector)
        request = self._request(server_round, arrays_digest(arrays))
        excluded = self.defence.excluded  # not asked again
        members = (member.client_id for cohort in secure.membership.cohorts for member in cohort)
        everybody = tuple(name for name in members if name not in excluded)
        for client_id in everybody:  # an upper bound: who was asked in an attempt that a crash cut off has spent, too
            self.state.asked[client_id] = self.state.asked.get(client_id, 0) + 1
        terms = digest_json("fedsec/run-terms/v1", [request.plan_json, request.noise_multiplier.hex()])
        record = arrays_to_record(arrays)
        given = RoundInput(
            request=request,
            arrays=record,
            model_bytes=4 * self.layout.size,
            terms_hash=bytes.fromhex(terms),
            root=self._root(server_round),
        )
        outcome = secure.run(given, present)
        norm = 0.0
        if outcome.total is not None and len(outcome.weights) >= self.plan.federation.min_clients:
            # No cap under masks: above the line none can be applied, and below it alone it would give large clients more than their share.
            norm = self._apply(outcome.total / sum(outcome.weights.values()))
        named = {name: Fault(reason=reason, evidence=outcome.evidence.get(name, "")) for name, reason in outcome.row.named}
        screening = self.defence.finish(server_round, named=named)
        counts = _secure_counts(outcome, screening, set(everybody) - gone.keys())
        self._finish_round(server_round, counts, norm, started, secagg=outcome.row, screening=screening, gone=gone)

    def _open_round(self, server_round: int, present: dict[str, int], gone: dict[str, str]) -> None:
        """Ask, wait, validate, aggregate; the server sees every update."""
        started = time.perf_counter()
        selected = tuple(name for name in self.select(server_round) if name not in gone)
        arrays = self.layout.unflatten(self.state.vector)
        request = self._request(server_round, arrays_digest(arrays))
        record = arrays_to_record(arrays)
        for client_id in selected:  # before asking: who was asked may have spent, whatever comes back
            self.state.asked[client_id] = self.state.asked.get(client_id, 0) + 1
        replies = self._ask(request, TRAIN, [name for name in selected if name in present], record)
        updates, refused, named = self._validate(server_round, replies, selected)
        if refused and len(refused) == len(selected) == len(self.clients):  # a few asked by lot may all be hostile; all cannot
            raise RoundAborted(f"no client trained in round {server_round}; {refused[0][0]} says: {refused[0][1]}")
        dropped = len(selected) - len(updates) - len(refused)
        norm, counted = self._aggregate(updates, server_round)
        screening = self.defence.finish(server_round, named=named)
        counts = Counts(selected=len(selected), valid=counted, refused=tuple(refused), dropped=dropped)
        self._finish_round(server_round, counts, norm, started, screening=screening, gone=gone)

    def _finish_round(
        self, server_round: int, counts: Counts, update_norm: float, started: float, *, secagg: SecaggRow | None = None,
        screening: ScreeningRow | None = None, gone: Mapping[str, str],
    ) -> None:  # fmt: skip
        self.state.server_round = server_round
        self.state.remember_tail(self.plan.training, self.plan.federation.rounds)
        row = replace(self._row(server_round, counts, update_norm, started, secagg), screening=screening, gone=tuple(sorted(gone.items())))
        self.state.rows.append(row)
        self.state.elapsed_s += row.seconds
        self.state.defence = self.defence.to_json()
        self.checkpoints.save(server_round, *self.state.to_checkpoint())
        if self.secure is not None:
            self.secure.forget_saved()
        self.services.on_round(row)

    def select(self, server_round: int) -> tuple[str, ...]:
        """The clients asked in a round: a public, seeded choice, the same on every engine. It amplifies nothing.

        Who was excluded for a provable fault is not asked again; who is in quarantine is, and is scored.
        """
        names = sorted(set(self.clients) - self.defence.excluded)
        count = max(1, math.floor(len(names) * self.plan.federation.fraction + 1e-9))
        if count >= len(names):
            return tuple(names)
        generator = np.random.default_rng([self.plan.federation.seed, server_round])
        return tuple(names[i] for i in sorted(generator.choice(len(names), size=count, replace=False)))

    def personalise(self) -> None:
        """After the last release: clients fit their personal parameters on their own records and keep them."""
        arrays = self.layout.unflatten(self.state.released())
        request = self._request(self.state.server_round, arrays_digest(arrays))
        self._ask(request, PERSONALISE, tuple(sorted(self._muster().present())), arrays_to_record(arrays))

    def evaluate_clients(self) -> dict[str, SiteMetrics]:
        """Each client's own test result, in clear: a release, so only where the plan or the simulation allows it."""
        arrays = self.layout.unflatten(self.state.released())
        request = self._request(self.state.server_round, arrays_digest(arrays))
        results = {}
        for name, reply in sorted(self._ask(request, EVALUATE, tuple(sorted(self._muster().present())), arrays_to_record(arrays)).items()):
            try:
                sender_of(reply, run_id=self.run_id, phase=EVALUATE, expected=name)
                results[name] = read_site_metrics(reply, sender=name)
            except PeerError:
                continue  # a client without a usable answer is simply absent from the table
        return results

    def _request(self, server_round: int, model_hash: str) -> RoundRequest:
        return RoundRequest(
            run_id=self.run_id,
            server_round=server_round,
            plan_json=plan_to_canonical(self.plan),
            noise_multiplier=self.noise_multiplier,
            model_hash=model_hash,
            simulation_dir=self.simulation_dir,
        )

    def _ask(self, request: RoundRequest, message_type: str, names: Sequence[str], arrays: ArrayRecord) -> dict[str, Message]:
        nodes = {self.clients[name]: name for name in names}
        messages = [make_request(request, node_id=node, message_type=message_type, arrays=arrays) for node in nodes]
        timeout_s = self.plan.federation.round_timeout_s
        on_answers = self.services.on_answers
        replies = exchange(self.grid, messages, timeout_s=timeout_s, stop=self.services.stop, on_answers=on_answers)
        return {nodes[reply.metadata.src_node_id]: reply for reply in replies if reply.metadata.src_node_id in nodes}

    def _validate(
        self, server_round: int, replies: dict[str, Message], selected: Sequence[str]
    ) -> tuple[list[ValidUpdate], list[tuple[str, str]], dict[str, Fault]]:
        """Valid updates; (client id, reason) of refused answers; and among those the clients whose own message proves a fault."""
        updates, refused, named = [], [], dict[str, Fault]()
        for name in selected:
            if (reply := replies.get(name)) is None:
                continue
            about = None
            try:
                said = sender_of(reply, run_id=self.run_id, phase=TRAIN, expected=name)
                if said.server_round != server_round:
                    raise PeerError(name, TRAIN, "the reply is for another round")
                about = said
                updates.append(
                    validate_update(
                        name, read_update(reply, sender=name), about.batch_size, layout=self.layout, most_batch_size=self.weight_limit
                    )
                )
                self.state.reported[name] = about.segments
                self.state.reported_at[name] = self.state.asked[name]
            except PeerError as error:
                refused.append((name, error.reason))
                if about is not None:  # the update or its size is at fault: no honest client sends such a thing, it checks before
                    named[name] = Fault(reason=error.reason, evidence=self.services.keep_evidence(server_round, name, error.reason, reply))
        return updates, refused, named

    def _aggregate(self, updates: list[ValidUpdate], server_round: int) -> tuple[float, int]:
        """Apply what the rule makes of the updates: L2 norm of the step, 0 if the model stayed as it was; and how many updates counted."""
        least, free = self.plan.federation.min_clients, sum(update.client_id not in self.defence.blocked for update in updates)
        if free < least:
            self.defence.fail(server_round, f"{free} usable updates, {least} are needed")
            return 0.0, free
        result = self.defence.aggregate(updates, server_round=server_round, dimension=self.layout.size, root=self._root(server_round))
        counted = self.defence.num_accepted
        if result is None or not counted:
            self.defence.fail(server_round, self.defence.failed or "the rule accepts nobody")
            return 0.0, 0
        return self._apply(result), counted

    def _root(self, server_round: int) -> npt.NDArray[np.float64] | None:
        return self.root_update(self.state.vector, server_round) if self.root_update is not None else None

    def _apply(self, mean: npt.NDArray[np.float64]) -> float:
        return float(np.linalg.norm(mean)) if self.state.apply(mean, self.plan.training) else 0.0

    def _row(self, server_round: int, counts: Counts, update_norm: float, started: float, secagg: SecaggRow | None) -> RoundRow:
        evaluation = self.services.evaluate(self.layout.unflatten(self.state.released()))
        prv, rdp = self.epsilon() if self.plan.is_private else (None, None)
        payload = 4 * self.layout.size
        up, down = payload * counts.valid, payload * counts.selected
        if secagg is not None:
            up, down = (sum(n * c.num_clients for c, n in sizes) for sizes in _bytes_of(secagg))
        return RoundRow(
            server_round=server_round,
            accuracy=evaluation.accuracy,
            loss=evaluation.loss,
            recall=evaluation.recall,
            epsilon_prv=prv,
            epsilon_rdp=rdp,
            num_selected=counts.selected,
            num_valid=counts.valid,
            num_dropped=counts.dropped,
            rejected=counts.refused,
            update_norm=update_norm,
            seconds=time.perf_counter() - started,
            bytes_up=up,
            bytes_down=down,
            site_accuracy=evaluation.site_accuracy,
            secagg=secagg,
        )

    def epsilon(self) -> tuple[float, float]:
        """(PRV, RDP) epsilon of the client that has spent most: the maximum holds because the clients' records are disjoint."""
        names = sorted({*self.state.asked, *self.state.reported})
        pairs = [self.services.epsilon(spends) for spends in {self._spends_of(name) for name in names}]
        return max((prv for prv, _ in pairs), default=0.0), max((rdp for _, rdp in pairs), default=0.0)

    def _spends_of(self, name: str) -> Segments:
        """What a client last reported, and every round in which it was asked since: its reply may be lost, its spend is not."""
        since = self.state.asked.get(name, 0) - self.state.reported_at.get(name, 0)
        own = ((self.noise_multiplier, self.plan.training.sample_rate, self.plan.training.steps * since),) if since > 0 else ()
        return (*self.state.reported.get(name, ()), *own)


def _secure_counts(outcome: SecureOutcome, screening: ScreeningRow | None, everybody: set[str]) -> Counts:
    """Who of the roster counts, was refused, or is missing; whom the rule kept out is neither refused nor missing."""
    # Refused late, in UNMASK say, is no loss: the update counts.
    refused = tuple((name, reason) for name, reason in _first_of_each(outcome.refused) if name not in outcome.weights)
    known = {*outcome.weights, *(name for name, _ in refused), *(screening.kept_out if screening is not None else ())}
    lost = sum(sum(cohort.dropouts.values()) for cohort in outcome.row.cohorts) - len(outcome.refused)
    missing = len(everybody - known) if outcome.weights else min(lost, len(everybody))
    return Counts(selected=len(everybody), valid=len(outcome.weights), refused=refused, dropped=max(0, missing))


def _first_of_each(refused: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """One reason for each client, the first."""
    return tuple({name: (name, reason) for name, reason in reversed(refused)}.values())[::-1]


def _bytes_of(secagg: SecaggRow) -> tuple[list[tuple[CohortRow, int]], list[tuple[CohortRow, int]]]:
    """Cohorts with their mean bytes a member, up and down."""
    return [(cohort, cohort.bytes_up) for cohort in secagg.cohorts], [(cohort, cohort.bytes_down) for cohort in secagg.cohorts]
