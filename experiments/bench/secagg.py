"""What a round of secure aggregation costs, each claim beside its limit or beside Flower's SecAgg+ in the same run.

Parts, for ``--only``:

``simulation``  all clients of a federation on two cores: everybody verifies everything, and the same with identical checks memoised in each
                process; with ``--save`` also the table of costs for a growing number of clients
``client``      one client of a cohort, step by step, without training and ``R·x``; everything verified, nothing memoised
``sketch``      ``R·x``, in a process of many clients and by itself
``server``      from released shares to the sum, with drop-outs before the upload: their pair masks must be made, too
``bytes``       what a client sends in all stages
``blame``       the server's side of BLAME after one member lied in its sketch
``flower``      both protocols by all clients and the server, and Flower's own functions one by one

The first parts but the simulation come from one cohort's real rounds, ``--repeats`` of them: all members, all uploads, all masks. Figures are
CPU time of the process with one BLAS thread; of clients the median over all that took part to the end in all rounds, of servers over rounds.
Ours runs before and after Flower. Where a function is measured and multiplied, the row says so. Limits hold for full sizes; ``--quick``
uses small ones and shows that the script works.

``python -m experiments.bench.secagg [--json] [--quick] [--only WORDS] [--repeats N] [--save]``
"""

from __future__ import annotations

import functools
import gc
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from threadpoolctl import threadpool_limits

from experiments.bench.masking import FLOWER_RING, FLOWER_TARGET, eight_rows_written_out
from experiments.bench.secagg_blame import blame_server_seconds
from experiments.bench.secagg_cohort import PROTOCOL_STEPS, CohortRun, base_update
from experiments.bench.secagg_costs import save_costs
from experiments.bench.secagg_simulation import WORKERS, Federation, RoundCost, make_identities, simulate
from experiments.bench.table import Row, parser, show
from fedsec.secagg.cohorts import CohortLimits
from fedsec.secagg.fixedpoint import BYTES_PER_ENTRY, FixedPoint
from fedsec.secagg.keys import PrivateKey
from fedsec.secagg.labels import SEED_BYTES, Phase
from fedsec.secagg.masking import apply_masks
from fedsec.secagg.shamir import LagrangeBasis, field_secret, randomness_bytes, split
from fedsec.secagg.sketch import SketchMatrix
from fedsec.signing import VerificationCache, Verify, verify_signature

LIMIT, FLOWER = "limit", "Flower SecAgg"
WRITTEN_OUT = "numpy, R written out (8 rows x k/8)"
HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of one run of this script.

    Attributes:
        dimension: d of the cohort's rounds.
        cohort: its members.
        corrupt: c.
        drops: members lost before the upload.
        num_rows: k.
        peer_cohort: members of the rounds beside Flower's.
        peer_corrupt: c there.
        peer_drops: lost before the upload there.
        peer_dimension: d there.
        federations: numbers of clients that are simulated; the last is the one with a limit.
        federation_cohort: largest cohort there.
        federation_dimension: d there.
        repeats: rounds of the cohort.
    """

    dimension: int = 1_000_000
    cohort: int = 64
    corrupt: int = 6
    drops: int = 6
    num_rows: int = 128
    peer_cohort: int = 50
    peer_corrupt: int = 5
    peer_drops: int = 3
    peer_dimension: int = 100_000
    federations: tuple[int, ...] = (10, 100, 300, 1000)
    federation_cohort: int = 64
    federation_dimension: int = 100_000
    repeats: int = 3

    @property
    def name(self) -> str:
        """Of the cohort's rounds."""
        return f"d={self.dimension}, N={self.cohort}"

    @property
    def peer_name(self) -> str:
        """Of the rounds beside Flower's."""
        return f"d={self.peer_dimension}, N={self.peer_cohort}"


QUICK = Sizes(
    dimension=20_000, cohort=10, corrupt=1, drops=1, peer_cohort=6, peer_corrupt=1, peer_drops=1, peer_dimension=2_000,
    federations=(10, 20), federation_cohort=10, federation_dimension=2_000, repeats=1,
)  # fmt: skip


class Bench:
    """The rounds that several parts look at, run when first asked for."""

    def __init__(self, sizes: Sizes, *, save: bool) -> None:
        self.sizes, self.save = sizes, save
        self.costs: list[RoundCost] = []

    @functools.cached_property
    def rounds(self) -> list[CohortRun]:
        """Rounds of one large cohort; of all but the last only the times are kept."""
        made = []
        for _ in range(self.sizes.repeats):
            run = self._round(store=True)
            run.encoded.clear()
            run.server.inputs.clear()
            made.append(run)
        return made

    @functools.cached_property
    def lying_round(self) -> CohortRun:
        """A round whose opening fails: the last member lies in its sketch."""
        return self._round(liar=self.sizes.cohort - 1)

    def _round(self, **settings: object) -> CohortRun:
        sizes, nonce = self.sizes, secrets.token_bytes(SEED_BYTES)
        drops = dict.fromkeys(range(1, 1 + sizes.drops), Phase.MASKED_INPUT)
        limits = CohortLimits.of(sizes.cohort, sizes.corrupt)
        run = CohortRun.of(limits, dimension=sizes.dimension, num_rows=sizes.num_rows, nonce=nonce, drops=drops, **settings)
        return run.whole_round(nonce)

    def over_clients(self, figure: Callable[[CohortRun, int], float]) -> float:
        """Median over the members that took part to the end, of all rounds."""
        return statistics.median(figure(run, index) for run in self.rounds for index in run.complete())

    def over_rounds(self, figure: Callable[[CohortRun], float]) -> float:
        """Median."""
        return statistics.median(figure(run) for run in self.rounds)


def client_rows(bench: Bench) -> list[Row]:
    """One client: the claim first, then its parts."""
    total = bench.over_clients(lambda run, index: run.client_seconds(index))

    def step(name: str) -> float:
        return bench.over_clients(lambda run, index: run.spent[index][name]) * 1e3

    what = f"client, {bench.sizes.name}"
    rows = [
        Row(what=f"{what}: round without training and R·x", ours=total * 1e3, peer=130.0, peer_name=LIMIT, unit="ms CPU"),
        Row(
            what=f"{what}: the same with its state stored", ours=total * 1e3 + step("store"), peer=130.0, peer_name=LIMIT, unit="ms CPU"
        ),
    ]  # fmt: skip
    return rows + [
        Row(what=f"{what}: of it {name}", ours=step(name), peer=total * 1e3, peer_name="the whole", unit="ms CPU")
        for name in PROTOCOL_STEPS
    ]


def sketch_rows(bench: Bench) -> list[Row]:
    """R·x."""
    sizes = bench.sizes
    x = np.arange(sizes.dimension, dtype=np.int32) % 4096 - 2048
    alone = {rows: SketchMatrix(seed=bytes(SEED_BYTES), num_rows=rows, dimension=sizes.dimension) for rows in (128, 256)}
    ways = {str(rows): functools.partial(matrix.product, x) for rows, matrix in alone.items()}
    ways["written out"] = functools.partial(eight_rows_written_out, alone[128], x)
    times = in_turns(ways, sizes.repeats)

    def shared(run: CohortRun) -> float:
        done = run.complete()
        return sum(run.spent[index]["product"] for index in done) / len(done) * 1e3

    amortised, what = bench.over_rounds(shared), f"sketch, d={sizes.dimension}"
    return [
        Row(what=f"{what}, k={sizes.num_rows}, R kept by a process, each", ours=amortised, peer=60.0, peer_name=LIMIT, unit="ms CPU"),
        *(
            Row(what=f"{what}, k={k}, by itself", ours=times[str(k)], peer=times["written out"] * k / 8, peer_name=WRITTEN_OUT, unit="ms CPU")
            for k in (128, 256)
        ),
    ]  # fmt: skip


def server_rows(bench: Bench) -> list[Row]:
    """Unmasking, and what the server spends in the stages before."""
    sizes = bench.sizes

    def spent(*names: str) -> float:
        return bench.over_rounds(lambda run: sum(run.server_spent[name] for name in names)) * 1e3

    before = spent("requests", "receive", "close", "screen", "decide")
    what = f"server, {sizes.name}, {sizes.drops} dropped"
    return [
        Row(
            what=f"{what}: combine and unmask, R·X checked",
            ours=spent("combine", "open", "check"),
            peer=1e3,
            peer_name=LIMIT,
            unit="ms CPU",
        ),
        Row(what=f"{what}: combine and unmask, unchecked", ours=spent("combine", "open"), peer=1e3, peer_name=LIMIT, unit="ms CPU"),
        Row(what=f"{what}: of it combine", ours=spent("combine"), peer=1e3, peer_name=LIMIT, unit="ms CPU"),
        Row(what=f"{what}: all stages before", ours=before, peer=1e3, peer_name="limit of unmasking", unit="ms CPU"),
    ]


def bytes_rows(bench: Bench) -> list[Row]:
    """What a client sends."""
    from flwr.common import ndarray_to_bytes
    from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

    sizes = bench.sizes
    up = bench.over_clients(lambda run, index: run.up[index])
    theirs = len(ndarray_to_bytes(pseudo_rand_gen(bytes(32), FLOWER_RING, [(sizes.dimension,)])[0]))
    what, d = f"upload, {sizes.name}", sizes.dimension
    return [
        Row(what=f"{what}: all stages", ours=up, peer=4.1 * d + 20_000, peer_name=LIMIT, unit="bytes"),
        Row(what=f"{what}: all stages, beside the vector", ours=up - 4 * d, peer=20_000, peer_name=LIMIT, unit="bytes"),
        Row(what=f"{what}: all stages; Flower: its vector alone", ours=up / d, peer=theirs / d, peer_name=FLOWER, unit="bytes a parameter"),
    ]


def blame_rows(bench: Bench) -> list[Row]:
    """BLAME at the server."""
    run = bench.lying_round
    spent = blame_server_seconds(run)
    return [
        Row(what=f"blame at the server, {bench.sizes.name}, k={bench.sizes.num_rows}: one liar", ours=spent, peer=5.0, peer_name=LIMIT, unit="s CPU")
    ]  # fmt: skip


def flower_rows(bench: Bench) -> list[Row]:
    """Whole rounds of both, ours before and after; then functions."""
    from experiments.bench.secagg_flower import flower_round

    sizes = bench.sizes
    limits = CohortLimits.of(sizes.peer_cohort, sizes.peer_corrupt)
    base = base_update(sizes.peer_dimension)

    def simulated(verify: Verify) -> CohortRun:
        """All members in one process, as in our simulator and in Flower's round: R and decoded identity keys, both public, are shared."""
        nonce = secrets.token_bytes(SEED_BYTES)
        drops = dict.fromkeys(range(sizes.peer_drops), Phase.MASKED_INPUT)
        run = CohortRun.of(
            limits, dimension=sizes.peer_dimension, num_rows=sizes.num_rows, nonce=nonce, drops=drops, share_matrix=True, cold_keys=False,
            verify=verify,
        )  # fmt: skip
        return run.whole_round(nonce)

    def ours() -> CohortRun:
        nonce = secrets.token_bytes(SEED_BYTES)
        drops = dict.fromkeys(range(sizes.peer_drops), Phase.MASKED_INPUT)
        run = CohortRun.of(
            limits, dimension=sizes.peer_dimension, num_rows=sizes.num_rows, nonce=nonce, drops=drops, share_matrix=False, cold_keys=True
        )
        return run.whole_round(nonce)

    runs = [ours()]
    settings = {"threshold": limits.threshold, "dropped": sizes.peer_drops}
    full = flower_round(base, sizes.peer_cohort, num_shares=1.0, **settings)
    runs.append(ours())
    together = [simulated(VerificationCache()), simulated(VerificationCache())]
    checking = [simulated(verify_signature), simulated(verify_signature), simulated(verify_signature)]
    sparse = flower_round(base, sizes.peer_cohort, num_shares=3, threshold=2, dropped=0)
    runs.append(ours())

    def clients(run: CohortRun) -> float:
        return sum(sum(steps.values()) for steps in run.spent.values())

    def server(run: CohortRun) -> float:
        return sum(run.server_spent.values())

    both = statistics.median(clients(run) + server(run) for run in runs)
    sketches = statistics.median(sum(steps["product"] for steps in run.spent.values()) + run.server_spent["check"] for run in runs)
    one = statistics.median(clients(run) / len(run.spent) for run in runs)
    serving = statistics.median(server(run) for run in runs)
    up = statistics.median(run.up[index] for run in runs for index in run.complete())
    memoised = statistics.median(clients(run) + server(run) for run in together)
    each = statistics.median(clients(run) + server(run) for run in checking)
    what = f"{sizes.peer_name}, {sizes.peer_drops} dropped"
    same = f"{FLOWER}, t={limits.threshold} as ours"
    return [
        Row(what=f"{what}: all clients and server, sketch and all checks", ours=both, peer=full.total, peer_name=same, unit="s CPU"),
        Row(what=f"{what}: the same without R·x, which Flower lacks", ours=both - sketches, peer=full.total, peer_name=same, unit="s CPU"),
        Row(what=f"{what}: in one process, every client checks everything", ours=each, peer=full.total, peer_name=same, unit="s CPU"),
        Row(what=f"{what}: in one process, identical checks once", ours=memoised, peer=full.total, peer_name=same, unit="s CPU"),
        Row(what=f"{what}: a client, mean", ours=one * 1e3, peer=statistics.mean(full.clients) * 1e3, peer_name=same, unit="ms CPU"),
        Row(what=f"{what}: server", ours=serving, peer=full.server, peer_name=same, unit="s CPU"),
        Row(
            what=f"{what}: all; the peer weaker by far, no drops",
            ours=both, peer=sparse.total, peer_name="Flower SecAgg+, 3 shares, t=2", unit="s CPU",
        ),
        Row(what=f"{what}: upload, all stages", ours=up, peer=statistics.median(full.up), peer_name=same, unit="bytes"),
        *_function_rows(sizes, limits),
    ]  # fmt: skip


def _function_rows(sizes: Sizes, limits: CohortLimits) -> list[Row]:
    """Flower's functions beside ours, per call; what is multiplied says so."""
    from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
    from flwr.common.secure_aggregation.crypto.symmetric_encryption import encrypt, generate_shared_key
    from flwr.common.secure_aggregation.ndarrays_arithmetic import parameters_addition
    from flwr.common.secure_aggregation.quantization import quantize
    from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
    from flwr.supercore.primitives.asymmetric import generate_key_pairs, private_key_to_bytes

    number, threshold, dimension, drops = limits.num_clients, limits.threshold, sizes.peer_dimension, sizes.peer_drops
    points, seed = range(1, number + 1), field_secret(secrets.token_bytes(SEED_BYTES))
    polynomial = secrets.token_bytes(randomness_bytes(threshold))
    update = base_update(dimension)
    fixed = FixedPoint.for_norm(10.0, num_clients=number, dimension=dimension)
    vector, wide, rounding = np.zeros(dimension, dtype=np.uint32), [np.zeros(dimension, dtype=np.int64)], bytes(BYTES_PER_ENTRY * dimension)
    (private, public), peer = generate_key_pairs(), PrivateKey(field_secret(secrets.token_bytes(SEED_BYTES))).public_key
    own, their_key = PrivateKey(seed), private_key_to_bytes(private)
    ours_shares = split(seed, threshold=threshold, points=points, randomness=polynomial)
    seed_shares, key_shares = create_shares(seed, threshold, number), create_shares(their_key, threshold, number)
    text, zero = secrets.token_bytes(64), bytes(12)
    accepted = number - drops  # Flower combines all shares that came

    def split_two() -> None:
        for _ in range(2):
            split(seed, threshold=threshold, points=points, randomness=polynomial)

    def combine_all() -> None:
        LagrangeBasis.at_zero(points[:threshold], threshold=threshold).combine_many([ours_shares[:threshold]] * number)

    times = in_turns(
        {
            "split": split_two,
            "create": lambda: (create_shares(seed, threshold, number), create_shares(their_key, threshold, number)),
            "combine": combine_all,
            "combine a seed": lambda: combine_shares(seed_shares[:accepted]),
            "combine a key": lambda: combine_shares(key_shares[:accepted]),
            "mask": lambda: apply_masks(vector, added=[bytes(16)]),
            "their mask": lambda: parameters_addition(wide, pseudo_rand_gen(bytes(32), FLOWER_RING, [(dimension,)])),
            "encode": lambda: fixed.encode(update, rounding),
            "quantize": lambda: quantize([update], 8.0, FLOWER_TARGET),
            "box": lambda: AESGCM(own.exchange(peer)[:16]).encrypt(zero, text, b""),
            "their box": lambda: encrypt(generate_shared_key(private, public), text),
        },
        sizes.repeats,
    )
    multiplied = times["combine a seed"] * accepted + times["combine a key"] * drops
    what, size = f"t={threshold} of {number}", f"d={dimension}"
    return [
        Row(what=f"share both secrets, {what}", ours=times["split"], peer=times["create"], peer_name=FLOWER, unit="ms CPU"),
        Row(
            what=f"combine all {number}, {what}",
            ours=times["combine"], peer=multiplied, peer_name=f"Flower, one call x {accepted} seeds, x {drops} keys", unit="ms CPU",
        ),
        Row(what=f"one mask, {size}", ours=times["mask"], peer=times["their mask"], peer_name=FLOWER, unit="ms CPU"),
        Row(what=f"encode / quantise, {size}", ours=times["encode"], peer=times["quantize"], peer_name=FLOWER, unit="ms CPU"),
        Row(what="exchange and one box", ours=times["box"], peer=times["their box"], peer_name=FLOWER, unit="ms CPU"),
    ]  # fmt: skip


def simulation_rows(bench: Bench) -> list[Row]:
    """The largest federation twice; with ``--save`` the smaller ones as well, and the table of all."""
    sizes = bench.sizes
    for number in sizes.federations if bench.save else sizes.federations[-1:]:
        federation = Federation(
            num_clients=number, dimension=sizes.federation_dimension, num_rows=sizes.num_rows, cohort_size=sizes.federation_cohort
        )
        with tempfile.TemporaryDirectory() as folder:
            make_identities(Path(folder) / "identities", federation)
            bench.costs += [simulate(Path(folder) / "identities", federation, memoised=memoised) for memoised in (False, True)]
    if bench.save:
        save_costs(bench.costs, HERE)
    rows = []
    for cost in bench.costs[-2:]:
        what = f"simulated, N={cost.num_clients}, d={cost.dimension}, {'memoised' if cost.memoised else 'all check all'}"
        what += f", {sum(cost.drops.values())} dropped, {len(cost.failed)}/{cost.cohorts} cohorts failed"
        rows += [
            Row(what=f"{what}: wall", ours=cost.wall_s, peer=90.0, peer_name=LIMIT, unit="s"),
            Row(what=f"{what}: CPU over both cores", ours=cost.cpu_s / WORKERS, peer=90.0, peer_name="limit of wall", unit="s CPU"),
            Row(what=f"{what}: memory", ours=cost.peak_gb, peer=4.0, peer_name=LIMIT, unit="GB PSS"),
        ]
    return rows


def in_turns(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median CPU ms of each way; every way runs once untimed first, and all take turns."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            started = time.process_time()
            way()
            if turn:
                times[name].append((time.process_time() - started) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


PARTS: dict[str, Callable[[Bench], list[Row]]] = {
    "simulation": simulation_rows,
    "client": client_rows,
    "sketch": sketch_rows,
    "server": server_rows,
    "bytes": bytes_rows,
    "blame": blame_rows,
    "flower": flower_rows,
}


def measure(sizes: Sizes, only: Sequence[str], *, save: bool = False) -> list[Row]:
    """The rows of the chosen parts. The simulation comes first: its workers are forked from a process that holds nothing yet."""
    bench, rows = Bench(sizes, save=save), []
    with threadpool_limits(limits=1):
        for name, part in PARTS.items():
            if name in only:
                rows += part(bench)
                gc.collect()
    return rows


def main() -> None:
    """Measure and show."""
    made = parser(__doc__ or "")
    made.add_argument("--only", choices=tuple(PARTS), nargs="+", default=list(PARTS), help="parts to measure (default: all)")
    made.add_argument("--quick", action="store_true", help="small sizes: shows that it works, not what it costs")
    made.add_argument("--repeats", type=int, default=0, help="rounds of the large cohort (default: 3, quick: 1)")
    made.add_argument("--save", action="store_true", help="write the table of costs and its figure beside this script")
    arguments = made.parse_args()
    if arguments.repeats < 0 or (arguments.save and "simulation" not in arguments.only):
        made.error("--repeats is at least 1, and --save needs the simulation")
    sizes = QUICK if arguments.quick else Sizes()
    if arguments.repeats:
        sizes = Sizes(**(vars(sizes) | {"repeats": arguments.repeats}))
    show("Secure aggregation, a round", measure(sizes, arguments.only, save=arguments.save), as_json=arguments.json)


if __name__ == "__main__":
    main()
