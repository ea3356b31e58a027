"""What the numeric parts of secure aggregation cost: masks, shares, encoding and sketches, against Flower's and plain ways.

Measured: CPU time of the process with one BLAS thread, in turns, round after round; the median round of each counts. In its turn a way
runs once untimed, so that its data are back in the cache, and then as often as makes 20 ms. Before that, results are checked against
one another.

Peers: Flower's own functions from the installed flwr; the bare AES-128-CTR key stream of the same length (the floor under any mask
made this way); R written out in numpy, eight rows of it, scaled up to as many rows as ours; one sketch after the other; and for the
round of a client, for which there is nothing to compare, the time that it should not pass at a dimension of a million.

The round of a client is all that it computes in a cohort of 64 beside training and sketch: encode, 64 masks, the hash and the P-256
signature of the upload, two secrets shared 36 of 64, 126 X25519 exchanges, seeds and keys from them, and 64 boxes.

``python -m experiments.bench.masking [--json] [--rounds N] [--dimension D]``
"""

from __future__ import annotations

import hashlib
import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.ndarrays_arithmetic import parameters_addition
from flwr.common.secure_aggregation.quantization import quantize
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from threadpoolctl import threadpool_limits

from experiments.bench.table import Row, parser, show
from fedsec.secagg.fixedpoint import BYTES_PER_ENTRY, FixedPoint, to_ring
from fedsec.secagg.masking import PairEnd, apply_masks, by_sign, pair_mask_key, pair_seed, self_mask_key
from fedsec.secagg.shamir import LagrangeBasis, combine, field_secret, randomness_bytes, split
from fedsec.secagg.sketch import SketchMatrix

COHORT = 64
THRESHOLD = 36
TURN_MS = 20.0
ROUND_LIMIT_MS = 130.0
FLOWER_RING = 1 << 32
FLOWER_TARGET = 1 << 22
PIECE_BYTES = 1 << 18

Way = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One row before it is measured: names of the two ways, and what each time is multiplied with."""

    what: str
    ours: str
    peer: str
    peer_name: str
    ours_factor: float = 1.0
    peer_factor: float = 1.0
    fixed_size: bool = False


FLOOR, FLOWER, WRITTEN_OUT, LIMIT = "AES-128-CTR alone", "Flower", "numpy, R written out", "limit for d=1000000"
COMPARISONS = (
    Comparison(what="one mask, generate and add", ours="mask", peer="floor", peer_name=FLOOR),
    Comparison(what="one mask, generate and add", ours="mask", peer="flower mask", peer_name=FLOWER),
    Comparison(what="64 masks, each", ours="masks", peer="floor", peer_name=FLOOR, ours_factor=1 / COHORT),
    Comparison(what="64 masks, each", ours="masks", peer="flower mask", peer_name=FLOWER, ours_factor=1 / COHORT),
    Comparison(what="encode / quantise", ours="encode", peer="flower quantise", peer_name=FLOWER),
    Comparison(what="client round but training, sketch", ours="client", peer="limit", peer_name=LIMIT),
    Comparison(what="Shamir split, 20 of 40", ours="split", peer="flower split", peer_name=FLOWER, fixed_size=True),
    Comparison(what="Shamir split, 36 of 64", ours="split 36", peer="flower split 36", peer_name=FLOWER, fixed_size=True),
    Comparison(what="Shamir combine, 20 of 40", ours="combine", peer="flower combine", peer_name=FLOWER, fixed_size=True),
    Comparison(
        what="combine, 64 secrets of the same 20, each",
        ours="combine many", peer="flower combine", peer_name=FLOWER, ours_factor=1 / COHORT, fixed_size=True,
    ),
    Comparison(what="sketch, k=256", ours="sketch 256", peer="written out", peer_name=WRITTEN_OUT, peer_factor=256 / 8),
    Comparison(what="sketch, k=128", ours="sketch 128", peer="written out", peer_name=WRITTEN_OUT, peer_factor=128 / 8),
    Comparison(what="sketch, k=128, R kept", ours="sketch kept", peer="written out", peer_name=WRITTEN_OUT, peer_factor=128 / 8),
    Comparison(what="64 sketches at once, k=256, each", ours="sketches", peer="sketch 256", peer_name="one by one", ours_factor=1 / COHORT),
)  # fmt: skip


def expand(name: str, size: int) -> bytes:
    """Reproducible bytes: a benchmark needs no secrets."""
    return hashlib.shake_256(name.encode()).digest(size)


def floor_of(dimension: int) -> Way:
    """A fresh cipher and its key stream, piece after piece into one buffer; nothing is added."""
    key, zeros, buffer = expand("key", 16), memoryview(bytes(PIECE_BYTES)), memoryview(bytearray(PIECE_BYTES + 16))

    def run() -> None:
        stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        for start in range(0, 4 * dimension, PIECE_BYTES):
            stream.update_into(zeros[: min(PIECE_BYTES, 4 * dimension - start)], buffer)

    return run


def mask_ways(dimension: int) -> dict[str, Way]:
    keys = [expand(f"key {index}", 16) for index in range(COHORT)]
    vector = np.zeros(dimension, dtype=np.uint32)
    wide = [np.zeros(dimension, dtype=np.int64)]
    return {
        "floor": floor_of(dimension),
        "mask": lambda: apply_masks(vector, added=keys[:1]),
        "masks": lambda: apply_masks(vector, added=keys[: COHORT // 2], subtracted=keys[COHORT // 2 :]),
        "flower mask": lambda: parameters_addition(wide, pseudo_rand_gen(keys[0], FLOWER_RING, [(dimension,)])),
    }


def encode_ways(dimension: int) -> dict[str, Way]:
    update = np.frombuffer(expand("update", 2 * dimension), dtype=np.int16).astype(np.float32) / np.float32(1 << 15)
    fixed = FixedPoint.for_norm(float(np.linalg.norm(update)), num_clients=COHORT, dimension=dimension)
    randomness = expand("rounding", BYTES_PER_ENTRY * dimension)
    deal = dealing_of_a_client()
    signer = ec.generate_private_key(ec.SECP256R1())

    def client() -> None:
        keys = deal()
        vector = to_ring(fixed.encode(update, randomness))
        apply_masks(vector, added=keys[: COHORT // 2], subtracted=keys[COHORT // 2 :])
        signer.sign(hashlib.blake2b(vector, digest_size=32, key=bytes(32)).digest(), ec.ECDSA(SHA256()))

    return {
        "client": client,
        "encode": lambda: fixed.encode(update, randomness),
        "flower quantise": lambda: quantize([update], 8.0, FLOWER_TARGET),
    }


def dealing_of_a_client() -> Callable[[], list[bytes]]:
    """What member 1 of 64 computes before it masks, with keys that are there already; returns its mask keys."""
    context, points = bytes(32), range(1, COHORT + 1)
    secrets = [field_secret(expand(name, 32)) for name in ("self", "mask")]
    coefficients = [expand(f"coefficients {name}", randomness_bytes(THRESHOLD)) for name in range(2)]
    mask_key, box_key = (X25519PrivateKey.from_private_bytes(expand(name, 32)) for name in ("mask", "box"))
    own = PairEnd(index=1, public_key=mask_key.public_key().public_bytes_raw())
    peers = {
        index: [
            X25519PrivateKey.from_private_bytes(expand(f"{use} {index}", 32)).public_key().public_bytes_raw() for use in ("mask", "box")
        ]
        for index in points[1:]
    }

    def run() -> list[bytes]:
        shares = [
            split(secret, threshold=THRESHOLD, points=points, randomness=randomness)
            for secret, randomness in zip(secrets, coefficients, strict=True)
        ]
        keys = {}
        for index, (mask_public, box_public) in peers.items():
            seed = pair_seed(
                mask_key.exchange(X25519PublicKey.from_public_bytes(mask_public)),
                context,
                own,
                PairEnd(index=index, public_key=mask_public),
            )
            keys[index] = pair_mask_key(seed, context)
            AESGCM(box_key.exchange(X25519PublicKey.from_public_bytes(box_public))).encrypt(
                bytes(12), shares[0][index - 1] + shares[1][index - 1], context
            )
        return [self_mask_key(secrets[0], context), *itertools.chain(*by_sign(1, keys))]

    return run


def shamir_ways() -> dict[str, Way]:
    secret, points = field_secret(expand("secret", 32)), range(1, 41)
    randomness = expand("coefficients", 32 * 19)
    shares = split(secret, threshold=20, points=points, randomness=randomness)
    theirs = create_shares(secret, 20, 40)
    if combine(points[10:30], shares[10:30], threshold=20) != secret or combine_shares(theirs[10:30]) != secret:
        raise SystemExit("shares do not open")
    return {
        "split": lambda: split(secret, threshold=20, points=points, randomness=randomness),
        "split 36": lambda: split(secret, threshold=THRESHOLD, points=range(1, COHORT + 1), randomness=expand("more", 32 * 35)),
        "flower split 36": lambda: create_shares(secret, THRESHOLD, COHORT),
        "combine": lambda: combine(points[10:30], shares[10:30], threshold=20),
        "combine many": lambda: LagrangeBasis.at_zero(points[10:30], threshold=20).combine_many([shares[10:30]] * COHORT),
        "flower split": lambda: create_shares(secret, 20, 40),
        "flower combine": lambda: combine_shares(theirs[10:30]),
    }


def eight_rows_written_out(matrix: SketchMatrix, x: np.ndarray) -> np.ndarray:
    """The first eight rows of R·x by way of R itself: bits unpacked, entries as float64, BLAS; exact for the x used here."""
    key = hashlib.sha256(b"any key: the time does not depend on it").digest()[:16]
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    rows = np.zeros(8)
    for start in range(0, matrix.dimension, 1 << 16):
        part = x[start : start + (1 << 16)]
        bits = np.unpackbits(np.frombuffer(stream.update(bytes(2 * len(part))), dtype=np.uint8)).reshape(-1, 16).astype(np.int8)
        rows += part.astype(np.float64) @ (bits[:, 0::2] - bits[:, 1::2]).astype(np.float64)
    return rows


def sketch_ways(dimension: int) -> dict[str, Way]:
    x = np.frombuffer(expand("encoded", 2 * dimension), dtype=np.int16).astype(np.int32)
    matrices = {rows: SketchMatrix(seed=bytes(32), num_rows=rows, dimension=dimension) for rows in (128, 256)}
    kept = SketchMatrix(seed=bytes(32), num_rows=128, dimension=dimension, keep=True)
    several = np.random.default_rng(0).integers(0, 1 << 32, (COHORT, dimension), dtype=np.uint32)
    if not np.array_equal(kept.product(x)[:8], matrices[256].entries(0, 8).astype(np.int64) @ x.astype(np.int64)):
        raise SystemExit("sketches differ from R written out")
    if not np.array_equal(matrices[256].ring_product_many(several)[-1], matrices[256].ring_product(several[-1])):
        raise SystemExit("sketches made at once differ from one by itself")
    return {
        "sketch 256": lambda: matrices[256].product(x),
        "sketch 128": lambda: matrices[128].product(x),
        "sketch kept": lambda: kept.product(x),
        "sketches": lambda: matrices[256].ring_product_many(several),
        "written out": lambda: eight_rows_written_out(matrices[256], x),
    }


def median_ms(ways: Mapping[str, Way], rounds: int) -> dict[str, float]:
    """Median CPU time of a run of each way over all rounds, in ms; all threads of the process count."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            runs = max(1, round(TURN_MS / max(run_ms(way, 1), 1e-3)))
            times[name].append(run_ms(way, runs))
    return {name: statistics.median(values) for name, values in times.items()}


def run_ms(way: Way, runs: int) -> float:
    start = time.process_time()
    for _ in range(runs):
        way()
    return (time.process_time() - start) * 1e3 / runs


def measure(rounds: int, dimension: int) -> list[Row]:
    """One row for each of COMPARISONS."""
    with threadpool_limits(limits=1):
        ways = mask_ways(dimension) | encode_ways(dimension) | shamir_ways() | sketch_ways(dimension)
        median = median_ms(ways, rounds) | {"limit": ROUND_LIMIT_MS}
    return [
        Row(
            what=row.what if row.fixed_size else f"{row.what}, d={dimension}",
            ours=median[row.ours] * row.ours_factor,
            peer=median[row.peer] * row.peer_factor,
            peer_name=row.peer_name,
            unit="ms CPU",
        )
        for row in COMPARISONS
    ]


def main() -> None:
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--rounds", type=int, default=9, help="rounds of measurement (default: 9)")
    arguments_of.add_argument("--dimension", type=int, default=1_000_000, help="parameters of the model (default: 1000000)")
    arguments = arguments_of.parse_args()
    if arguments.rounds < 1 or arguments.dimension < 1:
        arguments_of.error("--rounds and --dimension must be at least 1")
    show("Parts of secure aggregation, one thread", measure(arguments.rounds, arguments.dimension), as_json=arguments.json)


if __name__ == "__main__":
    main()
