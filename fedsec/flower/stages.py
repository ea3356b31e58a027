"""Secure aggregation over a Flower ``Grid``, at the server: stage after stage, attempt after attempt, to the sum over who was accepted.

1. Every rule of the protocol is in ``fedsec.secagg``. Here are deadlines, addresses, bytes, the journal, and the log.
2. A client that does not answer in time, or wrongly, is out of the attempt; its cohort goes on if enough are left.
3. A cohort that fails before UNMASK was asked for is tried again, ``secagg.attempts`` times in all; after that its clients' updates are lost
   for the round, and the other cohorts' sums are used.
4. A sum that contradicts the sketches is not used: BLAME asks who lied. Named clients stay out of the run, with evidence in the run's folder
   and in the log; silence and unresolved edges lead to sitting out, never to a name.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid

from fedsec.codec import canonical_json
from fedsec.defence import Defence
from fedsec.errors import DecodeError, PeerError, RoundAborted, VerificationError
from fedsec.files import atomic_write_bytes, atomic_write_json, sha256_file
from fedsec.flower.exchange import exchange
from fedsec.flower.journal import Journal
from fedsec.flower.records import RoundRequest
from fedsec.flower.roster import Membership
from fedsec.flower.saved import load_group, save_group
from fedsec.flower.secure_records import STAGES, make_stage_request, read_reply, stage_type
from fedsec.flower.sketch_rule import gated_members, sketch_rule
from fedsec.flower.tally import Tally
from fedsec.plan.model import Plan
from fedsec.plan.robust import rule_of
from fedsec.plan.secure import cohort_limits
from fedsec.results import CohortRow, SecaggRow
from fedsec.secagg.blame import BlameServer, name_bad_dealers, name_share_liars
from fedsec.secagg.checks import sign_config
from fedsec.secagg.config import RoundConfig, nonce_commitment
from fedsec.secagg.evidence import Named, verify_evidence
from fedsec.secagg.evidence_record import Evidence
from fedsec.secagg.fixedpoint import FixedPoint
from fedsec.secagg.group import GroupServer
from fedsec.secagg.labels import SEED_BYTES, Phase
from fedsec.secagg.opening import Opened, OpeningFailed, combine_secrets, open_round
from fedsec.secagg.server import CohortServer
from fedsec.signing import Signer, VerificationCache, Verify
from fedsec.translog.entries import EntryKind, LogEntry
from fedsec.translog.log import TransparencyLog

Sum = npt.NDArray[np.float64]

JUDGED = "judged.json"
"""Beside the saved groups: what the rule said of the round."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SecureOutcome:
    """What one round gave.

    Attributes:
        total: float64 [d], the sum of sum-form updates of all accepted clients; None if no cohort was opened.
        weights: declared weights of the accepted clients.
        refused: (client id, reason) of answers that were refused.
        row: for the result.
        evidence: named client → path of its evidence in the result folder.
    """

    total: Sum | None
    weights: dict[str, int]
    refused: tuple[tuple[str, str], ...]
    row: SecaggRow
    evidence: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class RoundInput:
    """What a round is about.

    Attributes:
        request: the ordinary part of every message; the attempt is filled in.
        arrays: the model.
        model_bytes: its size on the wire.
        terms_hash: digest of plan and noise.
        root: the server's own model difference on trusted records, for a rule that needs one.
    """

    request: RoundRequest
    arrays: ArrayRecord
    model_bytes: int
    terms_hash: bytes
    root: Sum | None = None


@dataclass(kw_only=True, eq=False)
class SecureRounds:
    """Secure aggregation of one run.

    Attributes:
        grid: Flower's way to the nodes.
        plan: what to run.
        membership: roster, certificates, cohorts.
        signer: of the server's identity key.
        journal: see there.
        log: the transparency log.
        evidence_dir: where evidence is kept.
        saved_dir: where groups are saved before UNMASK.
        fixed_points: encoding by cohort size.
        weight_limit: largest weight that a client may declare.
        defence: who counts.
        stop: set to end the wait.
        on_answers: told (answers so far, clients asked) while clients train.
        now_s: seconds since 1970.
        verify: checks signatures.
        newer: membership and encodings by the CA's newer list, if there is one to go over to.
    """

    grid: Grid
    plan: Plan
    membership: Membership
    signer: Signer
    journal: Journal
    log: TransparencyLog
    evidence_dir: Path
    saved_dir: Path
    fixed_points: Mapping[int, FixedPoint]
    weight_limit: int
    defence: Defence
    stop: threading.Event
    on_answers: Callable[[int, int], None] = lambda _answered, _asked: None
    now_s: Callable[[], int] = lambda: int(time.time())
    verify: Verify = field(default_factory=VerificationCache)
    newer: Callable[[], tuple[Membership, Mapping[int, FixedPoint]] | None] = lambda: None

    def go_over(self) -> bool:
        """Between two rounds: go by the CA's newer list from now on, if there is one; True if so."""
        found = self.newer()
        if found is None:
            return False
        self.membership, self.fixed_points = found
        return True

    def run(self, given: RoundInput, nodes: Mapping[str, int]) -> SecureOutcome:
        """One round, all its attempts.

        Args:
            given: what it is about.
            nodes: client id → node id of who is online.

        Raises:
            RoundAborted: every client refused to take part.
            StopRequested: someone asked the run to stop.
        """
        tally = Tally()
        server_round = given.request.server_round
        self._recall_evidence(given.request.server_round, tally)
        results = self._finish_saved(given, nodes, tally)
        waiting = set(range(len(self.membership.cohorts))) - results.keys()
        attempt = self.journal.next_attempt(server_round, self.plan.secagg.attempts, saved=bool(results))
        while attempt is not None and waiting:
            self.journal.begin(server_round, attempt, self.now_s())
            group = self._group(given, attempt, waiting)
            unmasked = self._stages(group, given, nodes, tally)
            for number, cohort in group.cohorts.items():
                if number in group.failed:
                    tally.reasons[number] = group.failed[number]
                    self._leave_out_suspects(cohort)
                else:
                    results[number] = self._open(cohort, nodes, given, tally)
            waiting = {number for number in group.failed if number not in unmasked}
            if tally.attempts == 0 and not results:
                self._refuse_if_all_refused(tally)
            retry = attempt < self.plan.secagg.attempts and waiting and not tally.failed_closed  # another R would judge no better
            attempt = attempt + 1 if retry else None
            tally.attempts += 1
        return self._outcome(results, tally)

    def _finish_saved(self, given: RoundInput, nodes: Mapping[str, int], tally: Tally) -> dict[int, Opened | None]:
        """Open what a server that died had saved before UNMASK, in any attempt of this round; the same request gets the same answers."""
        results: dict[int, Opened | None] = {}
        if self.journal.server_round != given.request.server_round:
            self.forget_saved()  # of a round whose checkpoint was written just before the server died
            return results
        self._restore_judgement(given.request.server_round)
        for path in sorted(self.saved_dir.glob("*.bin")):
            group = load_group(path, lambda number: self.membership.cohorts[number], self.verify, roster_hash=self.membership.roster_hash)
            if group is None or any(cohort.config.server_round != given.request.server_round for cohort in group.cohorts.values()):
                continue
            self._ask(group, Phase.UNMASK, given, nodes, tally)
            group.close_phase()
            results |= {number: self._open(cohort, nodes, given, tally) for number, cohort in group.cohorts.items()}
            tally.attempts = self.journal.attempt
        return results

    def _recall_evidence(self, server_round: int, tally: Tally) -> None:
        """Whoever was proven to lie in this very round before the server died stays named: the proof is on disk."""
        for path in sorted(self.evidence_dir.glob(f"round-{server_round:06d}-*.bin")):
            try:
                evidence = Evidence.decode(path.read_bytes())
                named = verify_evidence(evidence, self.membership.cohorts[evidence.config.cohort], verify=self.verify)
            except (OSError, DecodeError, VerificationError, IndexError):
                continue  # no proof, so nobody's
            self.journal.exclude(named.client_id, named.reason)
            tally.add_named(named.client_id, named.reason, f"{self.evidence_dir.name}/{path.name}")

    def _restore_judgement(self, server_round: int) -> None:
        """Who was rejected, and why, before the server died."""
        names = [member.client_id for cohort in self.membership.cohorts for member in cohort]
        try:
            kept = json.loads((self.saved_dir / JUDGED).read_text(encoding="utf-8"))["judged"]
            self.defence.restore_pending(kept, server_round=server_round, client_ids=names)
        except (OSError, ValueError, KeyError, TypeError, RecursionError, DecodeError):
            return  # the accepted set is in the saved group; only the report of this round is poorer

    def forget_saved(self) -> None:
        """The round has its checkpoint: what was kept to open it again, masked vectors among it, goes."""
        (self.saved_dir / JUDGED).unlink(missing_ok=True)
        for path in self.saved_dir.glob("*.bin"):
            path.unlink()

    # --- One attempt ------------------------------------------------------------------------------------------------------------

    def _group(self, given: RoundInput, attempt: int, numbers: set[int]) -> GroupServer:
        nonce = secrets.token_bytes(SEED_BYTES)
        left_out = self.journal.left_out(given.request.server_round)
        cohorts = {}
        for number in sorted(numbers):
            members = self.membership.cohorts[number]
            out = frozenset(index for index, member in enumerate(members) if member.client_id in left_out)
            config = self._config(given, attempt, number, nonce)
            cohorts[number] = CohortServer(config=config, members=members, verify=self.verify, excluded=out)
        return GroupServer(cohorts=cohorts, nonce=nonce)

    def _config(self, given: RoundInput, attempt: int, number: int, nonce: bytes) -> RoundConfig:
        membership, secagg = self.membership, self.plan.secagg
        size, count = len(membership.cohorts[number]), len(membership.cohorts)
        limits = cohort_limits(secagg, num_clients=membership.num_clients, size=size, cohorts=count)
        encoding = self.fixed_points[size]
        return RoundConfig(
            federation=membership.federation,
            cohort=number,
            num_cohorts=count,
            run_id=given.request.run_id,
            server_round=given.request.server_round,
            attempt=attempt,
            model_hash=bytes.fromhex(given.request.model_hash),
            terms_hash=given.terms_hash,
            roster_hash=membership.roster_hash,
            num_clients=limits.num_clients,
            num_corrupt=limits.num_corrupt,
            minimum_accepted=limits.minimum_accepted,
            threshold=limits.threshold,
            dimension=encoding.dimension,
            scale=encoding.scale,
            norm_bound=encoding.norm_bound,
            num_rows=secagg.sketch_rows,
            norm_slack=secagg.norm_slack,
            weight_limit=self.weight_limit,
            rule=rule_of(self.plan),
            nonce_commitment=nonce_commitment(nonce),
            time_s=self.journal.time_s,
        )

    def _stages(self, group: GroupServer, given: RoundInput, nodes: Mapping[str, int], tally: Tally) -> set[int]:
        """Run all stages; returns the cohorts in which UNMASK was asked for."""
        unmasked: set[int] = set()
        for phase in STAGES:
            if phase is Phase.SKETCH and group.running():
                group.open_nonce()
            if not group.running():
                break
            if phase is Phase.UNMASK:
                self.saved_dir.mkdir(exist_ok=True)
                atomic_write_json(self.saved_dir / JUDGED, {"judged": self.defence.pending})
                save_group(self.saved_dir / f"{given.request.server_round:06d}-{self.journal.attempt}.bin", group)
                self.journal.begin_unmasking()
                unmasked = set(group.running())
            started = time.perf_counter()
            self._ask(group, phase, given, nodes, tally)
            if phase is Phase.SKETCH:
                self._decide(group, given, tally)
            else:
                group.close_phase()
            tally.add_time(phase, time.perf_counter() - started)
        return unmasked

    def _decide(self, group: GroupServer, given: RoundInput, tally: Tally) -> None:
        """Run the rule on the pooled sketches; where it says that nobody may count, the round is over for all of them."""
        self.defence.reject(given.request.server_round, gated_members(group))
        try:
            group.decide(sketch_rule(self.defence, group, self.fixed_points, given.request.server_round, given.root))
        except RoundAborted as error:
            tally.failed_closed = error.reason
            for number in group.running():
                group.fail(number, error.reason)

    def _ask(self, group: GroupServer, phase: Phase, given: RoundInput, nodes: Mapping[str, int], tally: Tally) -> None:
        """Send one phase's requests, and hand the answers to the cohorts."""
        places: dict[int, tuple[int, int]] = {}
        messages: list[Message] = []
        for number, cohort in group.running().items():
            signed = sign_config(cohort.config, self.signer) if phase is Phase.ADVERTISE_KEYS else b""
            asked = {
                index: body for index, body in cohort.requests(signed_config=signed).items() if cohort.members[index].client_id in nodes
            }
            tally.add_asked(number, phase, len(asked))
            for index, body in asked.items():
                node = nodes[cohort.members[index].client_id]
                places[node] = (number, index)
                messages.append(self._message(given, cohort, phase, body, node))
                tally.add_down(number, index, len(body) + (given.model_bytes if phase is Phase.MASKED_INPUT else 0))
        for reply in self._exchange(messages, phase):
            if (place := places.get(reply.metadata.src_node_id)) is None:
                continue  # Flower itself answers for a node that is gone: a drop-out
            number, index = place
            self._take(group.cohorts[number], number, index, reply, phase, tally)

    def _message(self, given: RoundInput, cohort: CohortServer, phase: Phase, body: bytes, node: int) -> Message:
        request = given.request.with_attempt(cohort.config.attempt)
        arrays = given.arrays if phase is Phase.MASKED_INPUT else None
        return make_stage_request(request, body, node_id=node, message_type=stage_type(phase), arrays=arrays)

    def _exchange(self, messages: Sequence[Message], phase: Phase) -> list[Message]:
        trains = phase is Phase.MASKED_INPUT
        timeout_s = self.plan.federation.round_timeout_s if trains else self.plan.secagg.stage_timeout_s
        silent: Callable[[int, int], None] = lambda _answered, _asked: None  # noqa: E731
        return exchange(self.grid, messages, timeout_s=timeout_s, stop=self.stop, on_answers=self.on_answers if trains else silent)

    def _take(
        self, machine: CohortServer | BlameServer, number: int, index: int, reply: Message, phase: Phase, tally: Tally
    ) -> None:  # fmt: skip
        name = self.membership.cohorts[number][index].client_id
        try:
            body = read_reply(reply, sender=name, phase=phase)
            tally.add_up(number, index, len(body))
            machine.receive(index, body)
            tally.add_answer(number, phase)
        except PeerError as error:
            tally.refused.append((name, f"{phase}: {error.reason}"))
            tally.add_refusal(phase)

    # --- Opening, and what follows if it fails ----------------------------------------------------------------------------------

    def _open(self, cohort: CohortServer, nodes: Mapping[str, int], given: RoundInput, tally: Tally) -> Opened | None:
        """The checked sum of one cohort; None if there is none to use."""
        started, number = time.perf_counter(), cohort.config.cohort
        try:
            self._name(name_share_liars(cohort), cohort, tally)
            secrets_, bad = combine_secrets(cohort)
            self._name(name_bad_dealers(cohort, bad), cohort, tally)
            if bad:
                raise RoundAborted("a dealer's shares do not give what it committed to")
            opened = open_round(cohort, secrets_)
            self._log_round(cohort)
            return opened
        except RoundAborted as error:
            tally.reasons[number] = error.reason
        except OpeningFailed as error:
            tally.reasons[number] = str(error)
            tally.openings[number] = "failed"
            self._blame(BlameServer(server=cohort, secrets=secrets_), nodes, given, tally)
        finally:
            tally.add_time("opening", time.perf_counter() - started)
        return None

    def _blame(self, blame: BlameServer, nodes: Mapping[str, int], given: RoundInput, tally: Tally) -> None:
        cohort = blame.server
        for _ in range(2):  # who is silent is asked once more: an honest member may only be slow
            self._ask_blame(blame, nodes, given, tally)
        blame.close_values()
        self._ask_blame(blame, nodes, given, tally)
        outcome = blame.outcome()
        self._name(outcome.named, cohort, tally)
        # A silent member sits out. Its peers do not: one silent member would bench the cohort. Both ends of a dispute that neither settles do.
        disputed = {one for pair in outcome.unresolved if not set(pair) & set(outcome.silent) for one in pair}
        for index in sorted({*outcome.silent, *disputed}):
            name = cohort.members[index].client_id
            tally.unresolved.append(name)
            self.journal.sit_out(name)
        if outcome.wrapped:
            tally.reasons[cohort.config.cohort] += "; everybody's equations hold: a total off by a multiple of 2^32, nobody can be named"

    def _ask_blame(self, blame: BlameServer, nodes: Mapping[str, int], given: RoundInput, tally: Tally) -> None:
        """One phase of BLAME; openings are asked one by one, since each is a request of its own."""
        cohort, phase = blame.server, blame.phase
        waves: list[dict[int, bytes]] = []
        for index, bodies in blame.requests().items():
            for place, body in enumerate(bodies):
                waves += [{}] if place == len(waves) else []
                waves[place][index] = body
        for wave in waves:
            places = {nodes[cohort.members[index].client_id]: index for index in wave if cohort.members[index].client_id in nodes}
            messages = [self._message(given, cohort, phase, wave[index], node) for node, index in places.items()]
            for reply in self._exchange(messages, phase):
                if reply.metadata.src_node_id in places:
                    self._take(blame, cohort.config.cohort, places[reply.metadata.src_node_id], reply, phase, tally)

    def _name(self, named: Sequence[Named], cohort: CohortServer, tally: Tally) -> None:
        """Keep evidence in the folder and its hash in the log; leave the liar out."""
        for item in named:
            self.evidence_dir.mkdir(parents=True, exist_ok=True)
            path = self.evidence_dir / f"round-{cohort.config.server_round:06d}-{item.client_id}-{item.kind.name.lower()}.bin"
            atomic_write_bytes(path, item.evidence.encode(), mode=0o600)
            facts = {"client_id": item.client_id, "kind": item.kind.name, "reason": item.reason, "sha256": sha256_file(path)}
            self.log.append(LogEntry(kind=EntryKind.EVIDENCE, body=canonical_json({**self._facts(cohort), **facts})))
            self.journal.exclude(item.client_id, item.reason)
            tally.add_named(item.client_id, item.reason, f"{self.evidence_dir.name}/{path.name}")

    def _log_round(self, cohort: CohortServer) -> None:
        names = [cohort.members[index].client_id for index in cohort.accepted]
        rejected = [cohort.members[index].client_id for index in cohort.rejected]
        body = {
            **self._facts(cohort),
            "view": cohort.view.hex(),
            "agreement": cohort.agreement.hex(),
            "accepted": names,
            "rejected": rejected,
        }
        self.log.append(LogEntry(kind=EntryKind.ROUND, body=canonical_json(body)))

    def _facts(self, cohort: CohortServer) -> dict[str, str | int]:
        config = cohort.config
        return {
            "run_id": config.run_id,
            "server_round": config.server_round,
            "attempt": config.attempt,
            "cohort": config.cohort,
            "context": cohort.context.hex(),
        }

    def _leave_out_suspects(self, cohort: CohortServer) -> None:
        for index in cohort.suspects:
            self.journal.exclude(cohort.members[index].client_id, "more than c members got no usable shares from it; no proof")

    @staticmethod
    def _refuse_if_all_refused(tally: Tally) -> None:
        """Every client that was asked to join said no: another round would hear the same."""
        asked, refused = tally.joining()
        if asked and refused == asked:
            client_id, reason = tally.refused[0]
            raise RoundAborted(f"no client takes part; {client_id} says: {reason}")

    # --- The result -------------------------------------------------------------------------------------------------------------

    def _outcome(self, results: Mapping[int, Opened | None], tally: Tally) -> SecureOutcome:
        total: Sum | None = None
        weights: dict[str, int] = {}
        rows = []
        for number, members in enumerate(self.membership.cohorts):
            opened = results.get(number)
            if opened is not None:
                part = self.fixed_points[len(members)].decode(opened.total)
                total = part if total is None else total + part
                weights |= {members[index].client_id: weight for index, weight in opened.weights.items()}
            rows.append(self._row(number, opened, tally))
        row = SecaggRow(
            attempts=max(tally.attempts, 1),
            cohorts=tuple(rows),
            stage_ms={stage: round(seconds * 1000, 3) for stage, seconds in tally.seconds.items()},
            named=tuple(tally.named),
            unresolved=tuple(tally.unresolved),
        )
        return SecureOutcome(total=total, weights=weights, refused=tuple(tally.refused), row=row, evidence=tally.evidence)

    def _row(self, number: int, opened: Opened | None, tally: Tally) -> CohortRow:
        lost = "the server restarted after shares were asked for, or too often; the round is lost"
        return CohortRow(
            cohort=number,
            num_clients=len(self.membership.cohorts[number]),
            num_accepted=len(opened.accepted) if opened is not None else 0,
            dropouts=tally.dropouts(number),
            opening="held" if opened is not None else tally.openings.get(number, "not reached"),
            reason="" if opened is not None else tally.reasons.get(number) or lost,
            bytes_up=tally.mean_up(number),
            bytes_down=tally.mean_down(number),
        )
