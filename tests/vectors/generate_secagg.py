"""Write the vectors of secure aggregation's numeric parts: ``python tests/vectors/generate_secagg.py [FOLDER]``.

Nothing of fedsec is imported. Every expected value comes from a second, slow implementation below, written from the design and
from RFC 5869 (HKDF), SP 800-38A (AES-CTR, block by block through ECB) and plain formulas over Python's integers and fractions;
so the vectors check fedsec, and a test checks that they are what this file makes.
"""

import hashlib
import hmac
import json
import struct
import sys
from fractions import Fraction
from itertools import product
from math import comb, floor, isqrt
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

P = 2**255 - 19
RING = 2**32
V1 = "fedsec/secagg/v1/"


# --- the slow implementation ---


def expand(name: str, size: int) -> bytes:
    """``size`` reproducible bytes for the inputs of vectors."""
    return hashlib.shake_256(name.encode()).digest(size)


def labelled_hash(label: str, *parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in ((V1 + label).encode(), *parts))).digest()


def aes_ctr(key: bytes, first_counter: int, size: int) -> bytes:
    blocks = -(-size // 16)
    counters = b"".join((first_counter + index).to_bytes(16, "big") for index in range(blocks))
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(counters)[:size]


def hkdf(salt: bytes, key: bytes, info: bytes) -> bytes:
    extracted = hmac.digest(salt, key, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


def little(value: int) -> str:
    return value.to_bytes(32, "little").hex()


def shares_of(secret: int, coefficients: list[int], points: list[int]) -> list[str]:
    return [little((secret + sum(c * pow(x, power + 1, P) for power, c in enumerate(coefficients))) % P) for x in points]


def interpolate(points: list[int], shares: list[str]) -> str:
    total = 0
    for x, share in zip(points, shares, strict=True):
        weight = 1
        for other in points:
            if other != x:
                weight = weight * other * pow(other - x, -1, P) % P
        total += weight * int.from_bytes(bytes.fromhex(share), "little")
    return little(total % P)


def mask(kind: str, seed: bytes, context: bytes, words: int) -> list[int]:
    key = labelled_hash(f"{kind}-mask-key", seed, context)[:16]
    return list(struct.unpack(f"<{words}I", aes_ctr(key, 0, 4 * words)))


def pair(i: int, j: int) -> bytes:
    return struct.pack(">II", min(i, j), max(i, j))


def matrix_row(seed: bytes, row: int, dimension: int) -> list[int]:
    key = labelled_hash("sketch-key", seed)[:16]
    stream = aes_ctr(key, (row // 8) << 64, 2 * dimension)
    words = struct.unpack(f"<{dimension}H", stream)
    low = 2 * (row % 8)
    return [(word >> low & 1) - (word >> (low + 1) & 1) for word in words]


def encode(values: list[float], scale: float, norm_bound: int, random_bytes: bytes) -> list[int]:
    """Exact but for three float64 operations (norm, factor, product), for inputs whose norm float64 holds exactly."""
    dimension = len(values)
    signal = (norm_bound - (isqrt(dimension - 1) + 1)) * (1.0 - 2.0**-26)
    norm = float(sum(Fraction(value) ** 2 for value in values)) ** 0.5
    factor = scale if norm * scale <= signal else signal / norm
    thresholds = struct.unpack(f"<{dimension}I", random_bytes)
    return [floor(Fraction(round(Fraction(v * factor) * RING) + u, RING)) for v, u in zip(values, thresholds, strict=True)]


def lift(words: list[int]) -> list[int]:
    return [word - RING if word >= RING // 2 else word for word in words]


def tail(population: int, corrupt: int, size: int, c: int) -> Fraction:
    ways = sum(comb(corrupt, x) * comb(population - corrupt, size - x) for x in range(c + 1, min(corrupt, size) + 1))
    return Fraction(ways, comb(population, size))


# --- the vectors ---


def fixedpoint() -> dict:
    cases = [
        ("tiny", "half steps go up or down by the random word", [0.5, -0.5, 0.25, -0.25, 0.0, 1.0, -1.0, 3.75], 1.0, 1000, 3),
        ("ties", "random words 0 and 2**32 - 1: floor, and one step up for all but integers", [0.5, -0.5, 2.0, -2.0], 1.0, 1000, 3),
        ("scaled", "a power of two as scale keeps every product exact", [0.001953125, -0.75, 0.3125, 1.5], 4096.0, 1 << 20, 64),
        ("shrunk", "a norm of 5 steps over a bound of 4 leaves (4 - 2)(1 - 2**-26) / 5 of each entry", [3.0, 4.0], 1.0, 4, 2),
        ("huge", "float32's largest value is shrunk, not refused", [3.4028234663852886e38, 0.0, 0.0, 0.0], 1e30, 1 << 20, 64),
    ]
    encodings = []
    for name, comment, values, scale, norm_bound, clients in cases:
        random_bytes = expand(name, 4 * len(values)) if name != "ties" else bytes(8) + b"\xff" * 8
        expected = encode(values, scale, norm_bound, random_bytes)
        row = {"id": name, "comment": comment, "scale": scale, "norm_bound": norm_bound, "num_clients": clients, "update": values}
        encodings.append(row | {"randomness": random_bytes.hex(), "expected": expected})
    sums = []
    for name, comment, vectors in [
        ("negative", "a sum below zero is a residue near 2**32", [[-5, 7], [-6, -8]]),
        ("largest", "n·L in both directions", [[1000, -1000]] * 3),
    ]:
        total = [sum(column) % RING for column in zip(*vectors, strict=True)]
        sums.append({"id": name, "comment": comment, "norm_bound": 1000, "num_clients": 3, "total": total, "expected": lift(total)})
    return {"encodings": encodings, "sums": sums}


def bad_fixedpoint() -> dict:
    return {
        "parameters": [
            {"id": "sum_may_wrap", "comment": "2·n·L = 2**31", "scale": 1.0, "norm_bound": 1 << 24, "num_clients": 64, "dimension": 100},
            {
                "id": "sketch_may_wrap",
                "comment": "9·L/√2 > 2**31",
                "scale": 1.0,
                "norm_bound": isqrt((2**63 - 1) // 81) + 1,
                "num_clients": 2,
                "dimension": 100,
            },
            {"id": "no_room_to_round", "comment": "L = √d", "scale": 1.0, "norm_bound": 10, "num_clients": 2, "dimension": 100},
            {"id": "zero_scale", "comment": "everything would be 0", "scale": 0.0, "norm_bound": 1000, "num_clients": 2, "dimension": 100},
            {"id": "negative_scale", "comment": "", "scale": -1.0, "norm_bound": 1000, "num_clients": 2, "dimension": 100},
            {"id": "no_clients", "comment": "", "scale": 1.0, "norm_bound": 1000, "num_clients": 0, "dimension": 100},
            {"id": "no_entries", "comment": "", "scale": 1.0, "norm_bound": 1000, "num_clients": 2, "dimension": 0},
        ],
        "sums": [
            {
                "id": "over_n_L",
                "comment": "one step over what honest clients can reach",
                "norm_bound": 1000,
                "num_clients": 3,
                "total": [3001, 0],
            },
            {"id": "under_minus_n_L", "comment": "", "norm_bound": 1000, "num_clients": 3, "total": [0, RING - 3001]},
            {
                "id": "half_ring",
                "comment": "-2**31 has no positive counterpart",
                "norm_bound": 1000,
                "num_clients": 3,
                "total": [1 << 31, 0],
            },
        ],
    }


def shamir() -> dict:
    rows = []
    for name, threshold, points in [
        ("two_of_two", 2, [7, 9]),
        ("two_of_three", 2, [1, 2, 3]),
        ("far_points", 3, [65535, 1, 4096, 77]),
        ("twenty_of_forty", 20, list(range(1, 41))),
    ]:
        secret = int.from_bytes(expand(name + "/secret", 32), "little") % P
        randomness = expand(name + "/coefficients", 32 * (threshold - 1))
        coefficients = [
            (int.from_bytes(randomness[start : start + 32], "little") % 2**255) % P for start in range(0, 32 * (threshold - 1), 32)
        ]
        shares = shares_of(secret, coefficients, points)
        chosen = points[-threshold:]
        assert interpolate(chosen, shares[-threshold:]) == little(secret)
        row = {"id": name, "comment": "", "threshold": threshold, "points": points, "secret": little(secret)}
        rows.append(row | {"randomness": randomness.hex(), "expected": shares})
    extremes = [("zero", 0), ("largest", P - 1)]
    for name, secret in extremes:
        randomness = b"\xff" * 32
        shares = shares_of(secret, [(2**255 - 1) % P], [1, 2])
        row = {"id": name, "comment": "random bytes of ones: reduced modulo p", "threshold": 2, "points": [1, 2], "secret": little(secret)}
        rows.append(row | {"randomness": randomness.hex(), "expected": shares})
    return {"splits": rows}


def bad_shamir() -> dict:
    good = shares_of(5, [6], [1, 2, 3])
    return {
        "combine": [{"threshold": 2} | case for case in [
            {"id": "threshold_of_one", "comment": "a share would be the secret", "points": [1, 2], "shares": good[:2], "error": "ValueError", "threshold": 1},
            {"id": "zero_point", "comment": "the value at 0 is the secret", "points": [0, 2], "shares": good[:2], "error": "ValueError"},
            {"id": "point_twice", "comment": "one share counted twice", "points": [1, 1], "shares": [good[0]] * 2, "error": "ValueError"},
            {"id": "twice_past_threshold", "comment": "", "points": [1, 2, 2], "shares": good, "error": "ValueError"},
            {"id": "negative_point", "comment": "", "points": [-1, 2], "shares": good[:2], "error": "ValueError"},
            {"id": "point_over_16_bits", "comment": "", "points": [1, 65536], "shares": good[:2], "error": "ValueError"},
            {"id": "too_few", "comment": "one share for a threshold of two", "points": [1], "shares": good[:1], "error": "ValueError"},
            {"id": "share_missing", "comment": "", "points": [1, 2], "shares": good[:1], "error": "ValueError"},
            {"id": "share_is_p", "comment": "p encodes 0 a second time", "points": [1, 2], "shares": [little(P), good[1]], "error": "DecodeError"},
            {"id": "share_all_ones", "comment": "", "points": [1, 2], "shares": ["ff" * 32, good[1]], "error": "DecodeError"},
            {"id": "top_bit", "comment": "X25519 ignores it, the field does not", "points": [1, 2], "shares": [little(2**255 + 1), good[1]], "error": "DecodeError"},
            {"id": "short", "comment": "31 bytes", "points": [1, 2], "shares": [good[0][:-2], good[1]], "error": "DecodeError"},
            {"id": "long", "comment": "33 bytes", "points": [1, 2], "shares": [good[0] + "00", good[1]], "error": "DecodeError"},
            {"id": "empty", "comment": "", "points": [1, 2], "shares": ["", good[1]], "error": "DecodeError"},
        ]],
    }  # fmt: skip


def cohorts() -> dict:
    assignments = []
    for clients, size in [(1, 1), (7, 64), (10, 4), (65, 64), (130, 64)]:
        ids = [f"client-{index}" for index in range(clients)]
        seed = expand(f"cohorts/{clients}", 32)
        order = sorted(ids, key=lambda name, seed=seed: labelled_hash("cohort", seed, name.encode()))
        count = -(-clients // size)
        expected = [sorted(order[clients * g // count : clients * (g + 1) // count]) for g in range(count)]
        row = {"id": f"{clients}_by_{size}", "comment": "", "seed": seed.hex(), "client_ids": ids, "cohort_size": size}
        assignments.append(row | {"expected": expected})
    limits = [
        {"num_clients": n, "num_corrupt": c, "threshold": (n + c) // 2 + 1, "tolerated_dropouts": n - c - ((n + c) // 2 + 1)}
        for n, c in [(4, 1), (5, 1), (10, 1), (20, 2), (64, 6), (64, 19)]
    ]
    bounds = []
    for population, corrupt, size, draws in [
        (1000, 50, 64, 1),
        (1000, 50, 64, 16),
        (1000, 50, 63, 1),
        (1000, 50, 62, 1),
        (1000, 50, 63, 16 * 52),
        (1000, 100, 64, 1),
        (300, 30, 60, 5),
        (100, 3, 50, 2),
        (40, 2, 40, 1),
        (9, 0, 3, 3),
    ]:
        c = next(c for c in range(size + 1) if draws * tail(population, corrupt, size, c) <= Fraction(1, 2**40))
        bounds.append({"population": population, "corrupt": corrupt, "cohort_size": size, "draws": draws, "expected": max(c, 1)})
    return {"assignments": assignments, "limits": limits, "bounds": bounds}


def bad_cohorts() -> dict:
    return {
        "limits": [
            {
                "id": "three_clients",
                "comment": "t = 3 of 3, and one may be silent",
                "num_clients": 3,
                "num_corrupt": 1,
                "minimum_accepted": 3,
            },
            {
                "id": "nobody_corrupt",
                "comment": "the server may hold one client",
                "num_clients": 10,
                "num_corrupt": 0,
                "minimum_accepted": 2,
            },
            {
                "id": "sum_over_one",
                "comment": "a_min = c + 1: one honest client in the sum",
                "num_clients": 10,
                "num_corrupt": 2,
                "minimum_accepted": 3,
            },
            {
                "id": "a_min_too_large",
                "comment": "silent corrupt clients stop every round",
                "num_clients": 10,
                "num_corrupt": 2,
                "minimum_accepted": 9,
            },
            {
                "id": "tenth_of_1000_corrupt",
                "comment": "c = 27 of 64: t = 46, 9 more than the honest",
                "num_clients": 64,
                "num_corrupt": 27,
                "minimum_accepted": 29,
            },
            {"id": "too_large", "comment": "", "num_clients": 1025, "num_corrupt": 10, "minimum_accepted": 12},
            {"id": "empty", "comment": "", "num_clients": 0, "num_corrupt": 1, "minimum_accepted": 3},
        ]
    }


def masking() -> dict:
    context = expand("masking/context", 32)
    keys = [X25519PrivateKey.from_private_bytes(expand(f"masking/key/{i}", 32)) for i in range(3)]
    indices = [1, 2, 5]
    seeds = {}
    pairs = []
    for a, b in [(0, 1), (0, 2), (1, 2)]:
        shared = keys[a].exchange(keys[b].public_key())
        i, j = indices[a], indices[b]
        public = [keys[end].public_key().public_bytes_raw() for end in (a, b)]
        seed = seeds[i, j] = hkdf(context, shared, (V1 + "pair-seed").encode() + pair(i, j) + b"".join(public))
        tag = labelled_hash("edge-tag", seed, context, pair(i, j))
        row = {"shared_secret": shared.hex(), "pair": [i, j], "public_keys": [key.hex() for key in public]}
        pairs.append(row | {"seed": seed.hex(), "edge_tag": tag.hex()})
    words = 9
    masked = []
    for i, index in enumerate(indices):
        vector = [(100 * index + j) if j % 2 else RING - index - j for j in range(words)]
        self_seed = expand(f"masking/self/{index}", 32)
        total = [(x + m) % RING for x, m in zip(vector, mask("self", self_seed, context, words), strict=True)]
        for other in indices[:i] + indices[i + 1 :]:
            sign = 1 if index < other else -1
            edge = mask("pair", seeds[min(index, other), max(index, other)], context, words)
            total = [(x + sign * m) % RING for x, m in zip(total, edge, strict=True)]
        row = {
            "index": index,
            "vector": vector,
            "self_seed": self_seed.hex(),
            "commitment": labelled_hash("seed-commitment", self_seed).hex(),
        }
        masked.append(row | {"expected": total})
    long = mask("self", expand("masking/long", 32), context, 70001)
    digest = hashlib.sha256(struct.pack("<70001I", *long)).hexdigest()
    streams = [
        {"id": "long", "comment": "more words than one piece", "seed": expand("masking/long", 32).hex(), "words": 70001, "sha256": digest}
    ]
    return {"context": context.hex(), "pairs": pairs, "masked": masked, "streams": streams}


def sketch() -> dict:
    rows = []
    for name, comment, num_rows, dimension in [
        ("small", "x holds the extremes of int32", 16, 40),
        ("one_entry", "", 8, 1),
        ("two_pieces", "more coordinates than one piece", 8, 300_000),
    ]:
        root, nonce = expand(name + "/root", 32), expand(name + "/nonce", 32)
        seed = labelled_hash("sketch-seed", root, nonce)
        matrix = [matrix_row(seed, row, dimension) for row in range(num_rows)]
        x = list(struct.unpack(f"<{dimension}i", expand(name + "/x", 4 * dimension)))
        if name == "small":
            x[:4] = [-(2**31), 2**31 - 1, 0, -(2**31)]
        entries = b"".join(struct.pack(f"{dimension}b", *row) for row in matrix)
        expected = [sum(r * v for r, v in zip(row, x, strict=True)) for row in matrix]
        row = {"id": name, "comment": comment, "root": root.hex(), "nonce": nonce.hex(), "num_rows": num_rows, "dimension": dimension}
        row |= {"seed": seed.hex(), "entries_sha256": hashlib.sha256(entries).hexdigest(), "first_entries": matrix[0][:40]}
        words = [v % RING for v in x]
        row["ring_expected"] = [sum(r * w for r, w in zip(row_of_r, words, strict=True)) % RING for row_of_r in matrix]
        rows.append(row | {"x_little_endian_shake256_of": name + "/x", "x_start": x[:4], "expected": expected})
    return {"products": rows}


def bad_sketch() -> dict:
    """Sums that a weaker check would let pass; each names what the weaker check is."""
    dimension, num_rows = 24, 64
    root, nonce = expand("bad/root", 32), expand("bad/nonce", 32)
    seed = labelled_hash("sketch-seed", root, nonce)
    matrix = [matrix_row(seed, row, dimension) for row in range(num_rows)]
    honest = [[(7 * i * j) % 41 - 20 for j in range(dimension)] for i in range(1, 4)]
    sketches = [[sum(r * v for r, v in zip(row, x, strict=True)) for row in matrix] for x in honest]
    plain = [sum(column) for column in zip(*honest, strict=True)]

    def poisoned(poison: dict[int, int]) -> list[int]:
        return lift([(value + poison.get(index, 0)) % RING for index, value in enumerate(plain)])

    def rows_of(poison: dict[int, int]) -> list[int]:
        return [sum(row[index] * value for index, value in poison.items()) for row in matrix]

    def added(to_first: list[int]) -> list[list[int]]:
        return [[s + extra for s, extra in zip(sketches[0], to_first, strict=True)], *sketches[1:]]

    spread = {j: 300_000_000 * (-1) ** j for j in range(dimension)}
    wrapped = [(value + 2**31) % RING - 2**31 for value in rows_of(spread)]
    assert any(abs(value) >= 2**31 for value in rows_of(spread))
    cases = [
        ("half_ring_on_two", "2**31 on two coordinates: invisible to ±1 rows modulo 2**32", poisoned({3: 2**31, 9: 2**31}), sketches),
        ("minus_ring_multiple", "R·V - 2**32·z: equal modulo 2**32", poisoned(spread), added(wrapped)),
        ("one_step", "one coordinate off by one", poisoned({0: 1}), sketches),
        ("lying_sketch", "right sum, one row of one sketch off by one", plain, added([1] + [0] * (num_rows - 1))),
        ("one_sketch_missing", "a sum over three against two sketches", plain, sketches[:2]),
    ]
    for _, _, total, claimed in cases:
        assert any(sum(r * v for r, v in zip(row, total, strict=True)) != sum(s[k] for s in claimed) for k, row in enumerate(matrix))
    # What "half_ring_on_two" is about: with +1 and -1 alone no row sees it, modulo 2**32.
    assert all((a * 2**31 + b * 2**31) % RING == 0 for a, b in product((1, -1), repeat=2))
    openings = [{"id": name, "comment": comment, "total": total, "sketches": claimed} for name, comment, total, claimed in cases]
    good = {"id": "honest", "comment": "accepted", "total": plain, "sketches": sketches}
    return {"root": root.hex(), "nonce": nonce.hex(), "num_rows": num_rows, "dimension": dimension, "accepted": good, "openings": openings}


FILES = {
    "secagg_fixedpoint.json": fixedpoint,
    "secagg_bad_fixedpoint.json": bad_fixedpoint,
    "secagg_shamir.json": shamir,
    "secagg_bad_shamir.json": bad_shamir,
    "secagg_cohorts.json": cohorts,
    "secagg_bad_cohorts.json": bad_cohorts,
    "secagg_masking.json": masking,
    "secagg_sketch.json": sketch,
    "secagg_bad_sketch.json": bad_sketch,
}


def contents() -> dict[str, str]:
    """Name and text of every file."""
    note = "made by generate_secagg.py, which imports nothing of fedsec"
    return {name: json.dumps({"source": note} | make(), indent=1, allow_nan=False) + "\n" for name, make in FILES.items()}


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent
    for file_name, text in contents().items():
        (folder / file_name).write_text(text, encoding="utf-8")
