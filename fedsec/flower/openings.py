"""The checked sum of a cohort; and where the sum contradicts the sketches, who lied: evidence in the run's folder and in the log.

1. Named clients stay out of the run. Silence and unresolved edges lead to sitting out, never to a name.
2. A proof that is on disk outlives a server that dies: its client stays named.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsec.codec import canonical_json
from fedsec.errors import DecodeError, RoundAborted, VerificationError
from fedsec.files import atomic_write_bytes, sha256_file
from fedsec.flower.journal import Journal
from fedsec.flower.stage_calls import RoundInput, StageCalls
from fedsec.flower.tally import Tally
from fedsec.secagg.blame import BlameServer, name_bad_dealers, name_share_liars
from fedsec.secagg.config import Member
from fedsec.secagg.evidence import Named, verify_evidence
from fedsec.secagg.evidence_record import Evidence
from fedsec.secagg.opening import Opened, OpeningFailed, combine_secrets, open_round
from fedsec.secagg.server import CohortServer
from fedsec.signing import Verify
from fedsec.translog.entries import EntryKind, LogEntry
from fedsec.translog.log import TransparencyLog


@dataclass(frozen=True, kw_only=True, eq=False)
class Openings:
    """Opens cohorts that got to UNMASK.

    Attributes:
        calls: asks the members.
        journal: of who is out.
        log: the transparency log.
        evidence_dir: where evidence is kept.
    """

    calls: StageCalls
    journal: Journal
    log: TransparencyLog
    evidence_dir: Path

    def open(self, cohort: CohortServer, nodes: Mapping[str, int], given: RoundInput, tally: Tally) -> Opened | None:
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

    def recall_evidence(self, server_round: int, cohorts: Sequence[Sequence[Member]], verify: Verify, tally: Tally) -> None:
        """Whoever was proven to lie in this very round before the server died stays named: the proof is on disk."""
        for path in sorted(self.evidence_dir.glob(f"round-{server_round:06d}-*.bin")):
            try:
                evidence = Evidence.decode(path.read_bytes())
                named = verify_evidence(evidence, cohorts[evidence.config.cohort], verify=verify)
            except (OSError, DecodeError, VerificationError, IndexError):
                continue  # no proof, so nobody's
            self.journal.exclude(named.client_id, named.reason)
            tally.add_named(named.client_id, named.reason, f"{self.evidence_dir.name}/{path.name}")

    def leave_out_suspects(self, cohort: CohortServer) -> None:
        """Whoever left too many members without usable shares sits out the run; nothing proves whose fault it was, so there is no evidence."""
        for index in cohort.suspects:
            self.journal.exclude(cohort.members[index].client_id, "more than c members got no usable shares from it; no proof")

    def _blame(self, blame: BlameServer, nodes: Mapping[str, int], given: RoundInput, tally: Tally) -> None:
        cohort = blame.server
        for _ in range(2):  # who is silent is asked once more: an honest member may only be slow
            self.calls.ask_blame(blame, nodes, given, tally)
        blame.close_values()
        self.calls.ask_blame(blame, nodes, given, tally)
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

    def _name(self, named: Sequence[Named], cohort: CohortServer, tally: Tally) -> None:
        """Keep evidence in the folder and its hash in the log; leave the liar out."""
        for item in named:
            self.evidence_dir.mkdir(parents=True, exist_ok=True)
            path = self.evidence_dir / f"round-{cohort.config.server_round:06d}-{item.client_id}-{item.kind.name.lower()}.bin"
            atomic_write_bytes(path, item.evidence.encode(), mode=0o600)
            facts = {"client_id": item.client_id, "kind": item.kind.name, "reason": item.reason, "sha256": sha256_file(path)}
            self.log.append(LogEntry(kind=EntryKind.EVIDENCE, body=canonical_json({**_facts(cohort), **facts})))
            self.journal.exclude(item.client_id, item.reason)
            tally.add_named(item.client_id, item.reason, f"{self.evidence_dir.name}/{path.name}")

    def _log_round(self, cohort: CohortServer) -> None:
        names = [cohort.members[index].client_id for index in cohort.accepted]
        rejected = [cohort.members[index].client_id for index in cohort.rejected]
        body = {
            **_facts(cohort),
            "view": cohort.view.hex(),
            "agreement": cohort.agreement.hex(),
            "accepted": names,
            "rejected": rejected,
        }
        self.log.append(LogEntry(kind=EntryKind.ROUND, body=canonical_json(body)))


def _facts(cohort: CohortServer) -> dict[str, str | int]:
    config = cohort.config
    return {
        "run_id": config.run_id,
        "server_round": config.server_round,
        "attempt": config.attempt,
        "cohort": config.cohort,
        "context": cohort.context.hex(),
    }
