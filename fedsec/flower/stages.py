"""Secure aggregation over a Flower ``Grid``, at the server: stage after stage, attempt after attempt, to the sum over who was accepted.

1. Every rule of the protocol is in ``fedsec.secagg``. Here are deadlines, addresses, bytes, the journal, and the log.
2. A client that does not answer in time, or wrongly, is out of the attempt; its cohort goes on if enough are left.
3. A cohort that fails before UNMASK was asked for is tried again, ``secagg.attempts`` times in all; after that its clients' updates are lost
   for the round, and the other cohorts' sums are used.
4. A sum that contradicts the sketches is not used: BLAME asks who lied (``openings``).
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flwr.serverapp import Grid

from fedsec.defence import Defence
from fedsec.errors import DecodeError, RoundAborted
from fedsec.files import atomic_write_json
from fedsec.flower.journal import Journal
from fedsec.flower.openings import Openings
from fedsec.flower.roster import Membership
from fedsec.flower.saved import load_group, save_group
from fedsec.flower.secure_outcome import SecureOutcome, outcome_of
from fedsec.flower.secure_records import STAGES
from fedsec.flower.sketch_rule import gated_members, sketch_rule
from fedsec.flower.stage_calls import RoundInput, StageCalls
from fedsec.flower.tally import Tally
from fedsec.plan.model import Plan
from fedsec.plan.robust import rule_of
from fedsec.plan.secure import cohort_limits
from fedsec.secagg.config import RoundConfig, nonce_commitment
from fedsec.secagg.fixedpoint import FixedPoint
from fedsec.secagg.group import GroupServer
from fedsec.secagg.labels import SEED_BYTES, Phase
from fedsec.secagg.opening import Opened
from fedsec.secagg.server import CohortServer
from fedsec.signing import Signer, VerificationCache, Verify
from fedsec.translog.log import TransparencyLog

JUDGED = "judged.json"
"""Beside the saved groups: what the rule said of the round."""


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
    _calls: StageCalls = field(init=False, repr=False)
    _openings: Openings = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._calls = StageCalls(grid=self.grid, plan=self.plan, signer=self.signer, stop=self.stop, on_answers=self.on_answers)
        self._openings = Openings(calls=self._calls, journal=self.journal, log=self.log, evidence_dir=self.evidence_dir)

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
        self._openings.recall_evidence(server_round, self.membership.cohorts, self.verify, tally)
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
                    self._openings.leave_out_suspects(cohort)
                else:
                    results[number] = self._openings.open(cohort, nodes, given, tally)
            waiting = {number for number in group.failed if number not in unmasked}
            if tally.attempts == 0 and not results:
                self._refuse_if_all_refused(tally)
            retry = attempt < self.plan.secagg.attempts and waiting and not tally.failed_closed  # another R would judge no better
            attempt = attempt + 1 if retry else None
            tally.attempts += 1
        return outcome_of(results, tally, self.membership.cohorts, self.fixed_points)

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
            self._calls.ask(group, Phase.UNMASK, given, nodes, tally)
            group.close_phase()
            results |= {number: self._openings.open(cohort, nodes, given, tally) for number, cohort in group.cohorts.items()}
            tally.attempts = self.journal.attempt
        return results

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
            self._calls.ask(group, phase, given, nodes, tally)
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

    @staticmethod
    def _refuse_if_all_refused(tally: Tally) -> None:
        """Every client that was asked to join said no: another round would hear the same."""
        asked, refused = tally.joining()
        if asked and refused == asked:
            client_id, reason = tally.refused[0]
            raise RoundAborted(f"no client takes part; {client_id} says: {reason}")
