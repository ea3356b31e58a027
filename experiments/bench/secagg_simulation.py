"""A whole federation's round of secure aggregation on two cores: two forked workers own half of the cohorts each, clients and servers.

The parent holds the nonce and runs the rule; workers wait for it twice, as cohorts must: for the roots of all uploads, and for the decision.
Training is set aside (updates are random), and so is transport. What is verified: the CA's list once a process, every certificate once for
its cohort, every signature, share, hash and sum of the protocol by everybody; in the memoised form what was found good once in a process
is not checked again (``VerificationCache``). One R a process in both forms: it is public, and a process knows that it made it.

A tenth of the clients drops out, each at a stage drawn from a fixed seed: from there on it does not answer. Memory is the largest sum of
PSS seen, of parent and workers, everything included.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import random
import secrets
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from experiments.bench.secagg_cohort import STAGES, CohortRun, base_update, make_config
from fedsec.identity.names import Role
from fedsec.identity.roster import Roster, VerifiedRoster, verify_roster
from fedsec.identity.verify import verify_peer
from fedsec.plan.sections import SecaggSection
from fedsec.plan.secure import cohort_limits
from fedsec.secagg.cohorts import assign_cohorts
from fedsec.secagg.config import Member
from fedsec.secagg.group import accept_all
from fedsec.secagg.labels import DIGEST_BYTES, SEED_BYTES, Phase
from fedsec.signing import Signer, VerificationCache, verify_signature
from fedsec.sim.identities import FEDERATION, client_name, ensure_identities, load_certificate, load_client, load_federation

WORKERS = 2
DROPPED_SHARE = 10
CORRUPT_SHARE = 50
"""One client in so many may be corrupt."""
SAMPLE_S = 0.25
SEED = 20240


@dataclass(frozen=True, kw_only=True)
class Federation:
    """What is simulated.

    Attributes:
        num_clients: of the whole federation.
        dimension: d.
        num_rows: k.
        cohort_size: largest.
    """

    num_clients: int
    dimension: int
    num_rows: int = 128
    cohort_size: int = 64

    @property
    def names(self) -> list[str]:
        """All clients."""
        return [client_name(partition) for partition in range(self.num_clients)]

    @property
    def section(self) -> SecaggSection:
        """The plan's section."""
        return SecaggSection(cohort_size=self.cohort_size, num_corrupt=max(1, self.num_clients // CORRUPT_SHARE), sketch_rows=self.num_rows)

    def drops(self) -> dict[str, Phase]:
        """The first stage that each dropping client does not answer."""
        drawn = random.Random(SEED)  # noqa: S311 - a reproducible choice, no secret
        return {name: drawn.choice(STAGES) for name in drawn.sample(self.names, self.num_clients // DROPPED_SHARE)}


@dataclass(frozen=True, kw_only=True)
class RoundCost:
    """What one simulated round took.

    Attributes:
        num_clients: of the federation.
        dimension: d.
        memoised: whether identical checks in one process were made once.
        cohorts: how many.
        cohort_size: of the largest.
        num_corrupt: c of the largest cohort.
        tolerated_drops: that every cohort survives, even if all its corrupt members are silent as well.
        drops: clients that dropped out, by stage.
        most_drops: in one cohort.
        failed: cohorts that gave up, with their reasons.
        accepted: clients in the opened sums.
        wall_s: from the start of verification to the last opened sum.
        cpu_s: CPU of both workers in that time: what a busy machine changes less.
        client_ms: median CPU of the clients that took part to the end, ``R·x`` included.
        product_ms: ``R·x`` in it, shared by a process.
        client_max_ms: the largest.
        server_s: CPU of all cohort servers.
        certificates_s: CPU of verifying list and certificates, once a process and cohort.
        up_mb: median MB that such a client sent.
        down_mb: and was sent, without the model.
        peak_gb: memory.
        verified: signatures verified.
        remembered: signatures that were known to be good.
    """

    num_clients: int
    dimension: int
    memoised: bool
    cohorts: int
    cohort_size: int
    num_corrupt: int
    tolerated_drops: int
    drops: dict[str, int]
    most_drops: int
    failed: dict[int, str]
    accepted: int
    wall_s: float
    cpu_s: float
    client_ms: float
    product_ms: float
    client_max_ms: float
    server_s: float
    certificates_s: float
    up_mb: float
    down_mb: float
    peak_gb: float
    verified: int
    remembered: int

    def flat(self) -> dict[str, Any]:
        """For a table: what is nested becomes text."""
        return asdict(self) | {
            "drops": " ".join(f"{stage}:{count}" for stage, count in self.drops.items()),
            "failed": "; ".join(f"{number}: {reason}" for number, reason in self.failed.items()),
        }


class CountedVerify:
    """``verify_signature`` with a count."""

    def __init__(self) -> None:
        self.hits = 0
        self.misses = 0

    def __call__(self, public_key: bytes, label: str, message: bytes, signature: bytes) -> None:
        """See ``fedsec.signing``."""
        self.misses += 1
        verify_signature(public_key, label, message, signature)


def make_identities(folder: Path, federation: Federation) -> None:
    """Keys, certificates and the CA's list; not timed."""
    ensure_identities(folder, federation.names, cohort_size=federation.cohort_size, now=datetime.now(UTC))


class Worker:
    """Some cohorts with all their members."""

    def __init__(
        self, pipe: Connection, folder: Path, federation: Federation, *, numbers: Sequence[int], nonce: bytes, memoised: bool
    ) -> None:
        self.pipe, self.federation, self.numbers, self.nonce = pipe, federation, numbers, nonce
        self.memoised = memoised
        self.verify = VerificationCache() if memoised else CountedVerify()
        self.files = load_federation(folder)
        self.now = datetime.now(UTC)
        # Read, not verified: what is verified is timed.
        listed = Roster.decode(self.files.signed_roster.roster_bytes)
        cohorts = self.cohorts(listed)
        names = [name for number in numbers for name in cohorts[number]]
        self.signers: dict[str, Signer] = {name: load_client(folder, name).signer for name in names}
        self.certificates = {name: load_certificate(folder, name) for name in names}
        self.base = base_update(federation.dimension)

    def list(self) -> VerifiedRoster:
        """The CA's list."""
        return verify_roster(
            self.files.signed_roster,
            intermediate_der=self.files.intermediate_der,
            root_der=self.files.root_der,
            federation=FEDERATION,
            now=self.now,
        )

    def cohorts(self, roster: Roster) -> Sequence[Sequence[str]]:
        """As the list's seed draws them."""
        return assign_cohorts(roster.cohort_seed, list(roster.by_id), cohort_size=roster.cohort_size)

    def run(self) -> None:
        """One round, in step with the parent."""
        self.pipe.send("ready")
        self.pipe.recv()
        started = time.process_time()
        runs = self.members()
        certificates_s = time.process_time() - started
        for run in runs.values():
            run.set_up()
            run.upload()
        self.pipe.send({number: run.root() for number, run in runs.items()})
        roots = self.pipe.recv()
        self.pipe.send(
            {(number, member): sketch for number, run in runs.items() for member, sketch in run.sketch(roots, self.nonce).items()}
        )
        accepted = self.pipe.recv()
        for number, run in runs.items():
            run.finish([member for place, member in accepted if place == number])
        self.pipe.send("done")
        cpu_s = time.process_time() - started
        self.pipe.recv()
        for run in runs.values():
            run.check()
        self.pipe.send(self.report(runs, certificates_s) | {"cpu": cpu_s})

    def members(self) -> dict[int, CohortRun]:
        """The cohorts' runs, made of verified certificates."""
        verified = self.list()
        cohorts, drops = self.cohorts(verified.roster), self.federation.drops()
        runs = {}
        for number in self.numbers:
            members = tuple(self.member(name, verified) for name in cohorts[number])
            limits = cohort_limits(
                self.federation.section, num_clients=self.federation.num_clients, size=len(members), cohorts=len(cohorts)
            )  # fmt: skip
            runs[number] = CohortRun(
                config=make_config(
                    limits,
                    cohort=number,
                    num_cohorts=len(cohorts),
                    dimension=self.federation.dimension,
                    num_rows=self.federation.num_rows,
                    nonce=self.nonce,
                    roster_hash=verified.digest,
                ),
                signers=[self.signers[member.client_id] for member in members],
                members=members,
                base=self.base,
                drops={place: drops[member.client_id] for place, member in enumerate(members) if member.client_id in drops},
                verify=self.verify,
                cold_keys=not self.memoised,
                matrix_cache=runs[self.numbers[0]].matrix_cache if runs else {},
            )
        return runs

    def member(self, name: str, verified: VerifiedRoster) -> Member:
        """A member whose certificate is good and is the one on the list."""
        peer = verify_peer(
            self.certificates[name],
            intermediate_der=self.files.intermediate_der,
            root_der=self.files.root_der,
            federation=FEDERATION,
            role=Role.NODE,
            now=self.now,
        )
        listed = verified.roster.by_id[name]
        if peer.public_key != listed.public_key or peer.fingerprint != listed.certificate_fingerprint:
            raise SystemExit(f"{name}: another certificate than the list's")
        return Member(client_id=name, public_key=peer.public_key)

    def report(self, runs: Mapping[int, CohortRun], certificates_s: float) -> dict[str, Any]:
        """All that the parent cannot see."""
        done = [(run, index) for run in runs.values() for index in run.complete()]
        return {
            "clients": [run.client_seconds(index) + run.spent[index]["product"] for run, index in done],
            "products": [run.spent[index]["product"] for run, index in done],
            "server": sum(sum(run.server_spent.values()) for run in runs.values()),
            "certificates": certificates_s,
            "up": [run.up[index] for run, index in done],
            "down": [run.down[index] for run, index in done],
            "limits": [run.config.limits for run in runs.values()],
            "drops": [phase for run in runs.values() for phase in run.drops.values()],
            "most_drops": max(len(run.drops) for run in runs.values()),
            "failed": {number: run.failure for number, run in runs.items() if run.failure},
            "accepted": sum(len(run.opened.accepted) for run in runs.values() if run.opened is not None),
            "hits": self.verify.hits,
            "misses": self.verify.misses,
        }


def _work(pipe: Connection, *arguments: Any, **settings: Any) -> None:
    with threadpool_limits(limits=1):
        Worker(pipe, *arguments, **settings).run()


class MemoryWatch:
    """Largest sum of PSS of some processes."""

    def __init__(self, pids: Sequence[int]) -> None:
        self.pids, self.peak = pids, 0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """While the block runs."""
        over = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(over,))
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(SAMPLE_S):
            self.look()

    def look(self) -> None:
        """One sample."""
        total = 0
        for pid in self.pids:
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
                total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
        self.peak = max(self.peak, total)


def simulate(folder: Path, federation: Federation, *, memoised: bool) -> RoundCost:
    """One round on two cores."""
    context, nonce = multiprocessing.get_context("fork"), secrets.token_bytes(SEED_BYTES)
    count = -(-federation.num_clients // federation.cohort_size)
    gc.collect()
    pipes, workers = [], []
    for place in range(min(WORKERS, count)):
        ours, theirs = context.Pipe()
        numbers = list(range(place, count, WORKERS))
        worker = context.Process(
            target=_work, args=(theirs, folder, federation), kwargs={"numbers": numbers, "nonce": nonce, "memoised": memoised}
        )
        worker.start()
        theirs.close()
        pipes.append(ours)
        workers.append(worker)
    try:
        _ = [pipe.recv() for pipe in pipes]
        watch = MemoryWatch([os.getpid(), *(worker.pid for worker in workers if worker.pid is not None)])
        with watch.running():
            started = time.perf_counter()
            _tell(pipes, "start")
            roots = {number: root for pipe in pipes for number, root in pipe.recv().items()}
            _tell(pipes, [roots[number] or bytes(DIGEST_BYTES) for number in range(count)])
            sketches = {place: sketch for pipe in pipes for place, sketch in pipe.recv().items()}
            _tell(pipes, sorted(accept_all(sketches)))
            _ = [pipe.recv() for pipe in pipes]
            wall = time.perf_counter() - started
            watch.look()
        _tell(pipes, "report")
        reports = [pipe.recv() for pipe in pipes]
    finally:
        for pipe in pipes:
            pipe.close()
        for worker in workers:
            worker.join(timeout=60)
            if worker.is_alive():
                worker.kill()
    return _cost(federation, reports, memoised=memoised, wall_s=wall, peak=watch.peak, count=count)


def _tell(pipes: Sequence[Connection], what: Any) -> None:
    for pipe in pipes:
        pipe.send(what)


def _cost(federation: Federation, reports: Sequence[Any], *, memoised: bool, wall_s: float, peak: int, count: int) -> RoundCost:
    def pooled(name: str) -> list[Any]:
        return [value for report in reports for value in report[name]]

    limits = pooled("limits")
    drops = Counter(pooled("drops"))
    largest = max(limits, key=lambda each: each.num_clients)
    return RoundCost(
        num_clients=federation.num_clients,
        dimension=federation.dimension,
        memoised=memoised,
        cohorts=count,
        cohort_size=largest.num_clients,
        num_corrupt=largest.num_corrupt,
        tolerated_drops=min(each.tolerated_dropouts for each in limits),
        drops={str(stage): drops[stage] for stage in STAGES},
        most_drops=max(report["most_drops"] for report in reports),
        failed={number: reason for report in reports for number, reason in report["failed"].items()},
        accepted=sum(report["accepted"] for report in reports),
        wall_s=wall_s,
        cpu_s=sum(report["cpu"] for report in reports),
        client_ms=statistics.median(pooled("clients")) * 1e3,
        product_ms=statistics.median(pooled("products")) * 1e3,
        client_max_ms=max(pooled("clients")) * 1e3,
        server_s=sum(report["server"] for report in reports),
        certificates_s=sum(report["certificates"] for report in reports),
        up_mb=statistics.median(pooled("up")) / 1e6,
        down_mb=statistics.median(pooled("down")) / 1e6,
        peak_gb=peak / 1e9,
        verified=sum(report["misses"] for report in reports),
        remembered=sum(report["hits"] for report in reports),
    )
