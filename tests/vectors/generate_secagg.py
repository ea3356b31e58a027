"""Write the vectors of secure aggregation, its numbers and its messages: ``python tests/vectors/generate_secagg.py [FOLDER]``.

Nothing of fedsec is imported. Every expected value comes from a second, slow implementation below, written from the design and
from RFC 5869 (HKDF), SP 800-38A (AES-CTR, block by block through ECB) and plain formulas over Python's integers and fractions;
so the vectors check fedsec, and a test checks that they are what this file makes. X25519 and AES-GCM come from ``cryptography``.
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
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

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


# --- messages: a whole round of four, byte by byte ---


def u8(value: int) -> bytes:
    return struct.pack(">B", value)


def u16(value: int) -> bytes:
    return struct.pack(">H", value)


def u32(value: int) -> bytes:
    return struct.pack(">I", value)


def blob(data: bytes) -> bytes:
    return u32(len(data)) + data


def items(parts: list[bytes]) -> bytes:
    return u16(len(parts)) + b"".join(parts)


def head(kind: int) -> bytes:
    return b"fsa\x01" + u8(kind)


CONFIG = {
    "federation": "example.org", "cohort": 0, "num_cohorts": 1, "run_id": "run-ä", "server_round": 7, "attempt": 1,
    "model_hash": expand("messages/model", 32).hex(), "terms_hash": expand("messages/terms", 32).hex(),
    "roster_hash": expand("messages/roster", 32).hex(), "num_clients": 4, "num_corrupt": 1, "minimum_accepted": 3, "threshold": 3,
    "dimension": 8, "scale": 0.5, "norm_bound": 1000, "num_rows": 8, "norm_slack": 2.5, "weight_limit": 100, "rule": "mean",
    "nonce_commitment": labelled_hash("nonce", expand("messages/nonce", 32)).hex(), "time_s": 1_900_000_000,
}  # fmt: skip


def config_bytes(**changes: object) -> bytes:
    c = CONFIG | changes
    return b"".join(
        [
            head(2), blob(c["federation"].encode()), u16(c["cohort"]), u16(c["num_cohorts"]), blob(c["run_id"].encode()),
            u32(c["server_round"]), u8(c["attempt"]), *(bytes.fromhex(c[name]) for name in ("model_hash", "terms_hash", "roster_hash")),
            *(u16(c[name]) for name in ("num_clients", "num_corrupt", "minimum_accepted", "threshold")), u32(c["dimension"]),
            struct.pack(">d", c["scale"]), u32(c["norm_bound"]), u16(c["num_rows"]), struct.pack(">d", c["norm_slack"]),
            u32(c["weight_limit"]), blob(c["rule"].encode()), bytes.fromhex(c["nonce_commitment"]), struct.pack(">Q", c["time_s"]),
        ]
    )  # fmt: skip


def merkle_hash(data: list[bytes]) -> bytes:
    """RFC 9162, section 2.1.1, as it stands there."""
    if len(data) == 1:
        return hashlib.sha256(b"\0" + data[0]).digest()
    k = 1 << ((len(data) - 1).bit_length() - 1)
    return hashlib.sha256(b"\1" + merkle_hash(data[:k]) + merkle_hash(data[k:])).digest()


def merkle_path(m: int, data: list[bytes]) -> list[bytes]:
    """RFC 9162, section 2.1.3.1."""
    if len(data) == 1:
        return []
    k = 1 << ((len(data) - 1).bit_length() - 1)
    return [*merkle_path(m, data[:k]), merkle_hash(data[k:])] if m < k else [*merkle_path(m - k, data[k:]), merkle_hash(data[:k])]


def field_secret(random_bytes: bytes) -> bytes:
    return random_bytes[:31] + bytes([random_bytes[31] % 64])


def public(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def stand_in_signature(member: int, label: str, message: bytes) -> bytes:
    """ECDSA is randomised: in these vectors a hash stands for a signature. It shows what is signed, and under which label."""
    return hashlib.sha512(f"stand-in {member} {V1}{label}".encode() + b"\0" + message).digest()


class Round:
    """Everything that passes in one honest round of four: member 3 vanishes while it trains, A = {0, 1, 2}."""

    def __init__(self) -> None:
        self.context = labelled_hash("context", b"fedsec/secagg/v1", config_bytes())
        self.members, self.accepted, self.rejected = range(4), range(3), [3]
        self.randomness = [expand(f"messages/join/{i}", 96) for i in self.members]
        self.mask_keys, self.box_keys, self.seeds = (
            [field_secret(random_bytes[at : at + 32]) for random_bytes in self.randomness] for at in (0, 32, 64)
        )
        self.encoded = [list(struct.unpack("<8b", expand(f"messages/encoded/{i}", 8))) for i in self.members]
        self.requests: dict[str, dict[str, str]] = {}
        self.messages: dict[str, dict[str, str]] = {}
        self.pairs = self.derive_pairs()
        self.advertise()
        self.deal()
        self.upload()
        self.sketch()
        self.agree()
        self.unmask()
        self.blame()

    def signed_by(self, kind: int, member: int) -> bytes:
        return head(kind) + self.context + u16(member)

    def send(self, stage: str, label: str, contents: dict[int, bytes], attachments: dict[int, bytes]) -> None:
        """Envelopes of all that say something in a stage."""
        self.signatures = {i: stand_in_signature(i, label, content) for i, content in contents.items()}
        self.messages[stage] = {
            str(i): (head(1) + blob(content) + self.signatures[i] + blob(attachments.get(i, b""))).hex() for i, content in contents.items()
        }

    def ask(self, stage: str, requests: dict[int, bytes]) -> None:
        self.requests[stage] = {str(i): data.hex() for i, data in requests.items()}

    def derive_pairs(self) -> dict[tuple[int, int], dict[str, bytes]]:
        found = {}
        for i, j in product(self.members, self.members):
            if i >= j:
                continue
            shared = X25519PrivateKey.from_private_bytes(self.mask_keys[i]).exchange(
                X25519PrivateKey.from_private_bytes(self.mask_keys[j]).public_key()
            )
            keys = public(self.mask_keys[i]) + public(self.mask_keys[j])
            seed = hkdf(self.context, shared, (V1 + "pair-seed").encode() + pair(i, j) + keys)
            boxes = X25519PrivateKey.from_private_bytes(self.box_keys[j]).exchange(
                X25519PrivateKey.from_private_bytes(self.box_keys[i]).public_key()
            )
            found[i, j] = {"seed": seed, "tag": labelled_hash("edge-tag", seed, self.context, pair(i, j))}
            for a, b in ((i, j), (j, i)):
                info = (V1 + "box-key").encode() + u16(a) + u16(b) + public(self.box_keys[a]) + public(self.box_keys[b])
                found[i, j][f"box_{a}_{b}"] = hkdf(self.context, boxes, info)[:16]
        return found

    def edge(self, i: int, j: int) -> dict[str, bytes]:
        return self.pairs[min(i, j), max(i, j)]

    def advertise(self) -> None:
        self.adverts = {
            i: self.signed_by(10, i) + public(self.mask_keys[i]) + public(self.box_keys[i])
            + labelled_hash("seed-commitment", self.seeds[i]) + u32(10 + i)
            for i in self.members
        }  # fmt: skip
        self.send("advertise_keys", "sign-advert", self.adverts, {})
        request = head(30) + self.context + items([blob(self.adverts[i]) + self.signatures[i] for i in self.members])
        self.ask("share_keys", dict.fromkeys(self.members, request))

    def deal(self) -> None:
        self.shares: dict[tuple[int, int, str], bytes] = {}
        leaves: dict[int, list[bytes]] = {}
        for i in self.members:
            random_bytes = expand(f"messages/deal/{i}", 128)
            higher = [int.from_bytes(random_bytes[at : at + 32], "little") % 2**255 for at in range(0, 128, 32)]
            for kind, secret, coefficients in (("seed", self.seeds[i], higher[:2]), ("key", self.mask_keys[i], higher[2:])):
                values = shares_of(int.from_bytes(secret, "little"), coefficients, [j + 1 for j in self.members])
                for j, value in zip(self.members, values, strict=True):
                    self.shares[i, j, kind] = bytes.fromhex(value)
            leaves[i] = []
            for j in self.members:
                box = b""
                if i != j:
                    associated = (V1 + "box-key").encode() + self.context + u16(i) + u16(j)
                    plain = self.shares[i, j, "seed"] + self.shares[i, j, "key"]
                    box = AESGCM(self.edge(i, j)[f"box_{i}_{j}"]).encrypt(bytes(12), plain, associated)
                hashes = [
                    labelled_hash("share", self.context, u16(i), u16(j), kind.encode(), self.shares[i, j, kind]) for kind in ("seed", "key")
                ]
                leaves[i].append(u16(j) + blob(box) + b"".join(hashes) + (self.edge(i, j)["tag"] if i != j else bytes(32)))
        trees = {i: [head(12) + leaf for leaf in leaves[i]] for i in self.members}
        self.dealings = {i: self.signed_by(11, i) + merkle_hash(trees[i]) for i in self.members}
        self.send("share_keys", "sign-dealing", self.dealings, {i: head(13) + items(leaves[i]) for i in self.members})
        requests = {}
        for j in self.members:
            parts = [
                u16(i) + merkle_hash(trees[i]) + self.signatures[i] + blob(trees[i][j] if i != j else b"")
                + items(merkle_path(j, trees[i]) if i != j else [])
                for i in self.members
            ]  # fmt: skip
            requests[j] = head(31) + self.context + items(parts) + items([])
        self.ask("masked_input", requests)

    def upload(self) -> None:
        indexed = [[u16(i) + contents[i] for i in self.members] for contents in (self.adverts, self.dealings)]
        everybody = b"".join(u16(i) for i in self.members)
        self.base_view = labelled_hash(
            "base-view",
            self.context,
            everybody,
            labelled_hash("adverts", *indexed[0]),
            everybody,
            labelled_hash("dealings", *indexed[1]),
            b"",
        )
        vectors = {}
        for i in self.accepted:
            total = [(x + m) % RING for x, m in zip(self.encoded[i], mask("self", self.seeds[i], self.context, 8), strict=True)]
            for j in self.members:
                if j != i:
                    sign = 1 if i < j else -1
                    total = [
                        (x + sign * m) % RING for x, m in zip(total, mask("pair", self.edge(i, j)["seed"], self.context, 8), strict=True)
                    ]
            vectors[i] = struct.pack("<8I", *total)
        hashes = {
            i: hashlib.blake2b(u16(i) + vector, digest_size=32, key=self.context, person=b"fedsec-vector-v1").digest()
            for i, vector in vectors.items()
        }
        self.inputs = {i: self.signed_by(14, i) + self.base_view + hashes[i] + items([]) for i in self.accepted}
        self.send("masked_input", "sign-input", self.inputs, vectors)

    def sketch(self) -> None:
        nonce = expand("messages/nonce", 32)
        leaves = {i: labelled_hash("input", self.inputs[i]) for i in self.accepted}
        self.root = labelled_hash("inputs", self.context, *(u16(i) + leaves[i] for i in self.accepted))
        self.group = labelled_hash("group", self.root)
        self.matrix_seed = labelled_hash("sketch-seed", self.group, nonce)
        self.view = labelled_hash("view", self.base_view, self.group, self.matrix_seed)
        request = head(32) + self.context + items([u16(i) + leaves[i] for i in self.accepted]) + items([self.root]) + nonce
        self.ask("sketch", dict.fromkeys(self.accepted, request))
        self.matrix = [matrix_row(self.matrix_seed, row, 8) for row in range(8)]
        self.commitments, contents, attachments = {}, {}, {}
        for i in self.accepted:
            values = struct.pack("<8i", *(sum(r * x for r, x in zip(row, self.encoded[i], strict=True)) for row in self.matrix))
            salt = expand(f"messages/salt/{i}", 32)
            self.commitments[i] = labelled_hash("sketch", self.context, u16(i), salt, values)
            contents[i] = self.signed_by(15, i) + self.view + self.commitments[i]
            attachments[i] = head(16) + salt + blob(values)
        self.send("sketch", "sign-sketch", contents, attachments)

    def agree(self) -> None:
        members = [b"".join(u16(i) for i in chosen) for chosen in (self.accepted, self.rejected)]
        self.agreement = labelled_hash("agreement", self.context, self.view, *members)
        parts = [u16(i) + self.commitments[i] + self.signatures[i] for i in self.accepted]
        self.sets = self.context + items(parts) + items([u16(i) for i in self.rejected])
        self.ask("consistency_check", dict.fromkeys(self.accepted, head(33) + self.sets))
        self.send("consistency_check", "sign-consent", {i: self.signed_by(17, i) + self.view + self.agreement for i in self.accepted}, {})

    def unmask(self) -> None:
        certificate = items([u16(i) + self.signatures[i] for i in self.accepted])
        self.ask("unmask", dict.fromkeys(self.accepted, head(34) + self.sets + certificate))
        contents = {}
        for j in self.accepted:
            released = [blob(self.shares[i, j, "seed" if i in self.accepted else "key"]) for i in self.members]
            contents[j] = self.signed_by(18, j) + self.view + self.agreement + items(released)
        self.send("unmask", "sign-shares", contents, {})

    def blame(self) -> None:
        self.ask("blame", dict.fromkeys(self.accepted, head(35) + self.context))
        contents = {}
        for i in self.accepted:
            edges = []
            for j in self.accepted:
                if i != j:
                    words = mask("pair", self.edge(i, j)["seed"], self.context, 8)
                    values = [sum(r * w for r, w in zip(row, words, strict=True)) % RING for row in self.matrix]
                    edges.append(u16(j) + blob(struct.pack("<8I", *values)))
            contents[i] = self.signed_by(19, i) + self.view + self.agreement + items(edges)
        self.send("blame", "sign-blame", contents, {})


def messages() -> dict:
    made = Round()
    pairs = [{"pair": list(ends)} | {name: value.hex() for name, value in values.items()} for ends, values in made.pairs.items()]
    inputs = {
        "members": [f"client-{i}" for i in made.members], "weights": [10 + i for i in made.members], "encoded": made.encoded,
        "join_randomness": [random_bytes.hex() for random_bytes in made.randomness],
        "deal_randomness": [expand(f"messages/deal/{i}", 128).hex() for i in made.members],
        "salts": [expand(f"messages/salt/{i}", 32).hex() for i in made.members], "nonce": expand("messages/nonce", 32).hex(),
        "accepted": list(made.accepted), "rejected": made.rejected,
    }  # fmt: skip
    hashes = {
        "context": made.context, "retry_digest": labelled_hash("retry", config_bytes(attempt=1, nonce_commitment=bytes(32).hex())),
        "base_view": made.base_view, "input_root": made.root, "group_root": made.group, "matrix_seed": made.matrix_seed,
        "view": made.view, "agreement": made.agreement,
    }  # fmt: skip
    return {
        "comment": "one honest round of four; a signature is SHA-512 of 'stand-in', member and label, 0, message",
        "config": CONFIG, "config_bytes": config_bytes().hex(), "inputs": inputs, "pairs": pairs,
        "hashes": {name: value.hex() for name, value in hashes.items()}, "requests": made.requests, "messages": made.messages,
    }  # fmt: skip


def bad_messages() -> dict:
    """Bytes that are no message; each differs from a good one in what its comment says."""
    context, view = expand("bad/context", 32), expand("bad/view", 32)
    signature, hash_ = expand("bad/signature", 64), expand("bad/hash", 32)
    signed = context + u16(1)
    advert = head(10) + signed + hash_ + hash_[::-1] + view + u32(7)
    envelope = head(1) + blob(advert) + signature + blob(b"")
    nan, minus_zero, infinity = (struct.pack(">d", value) for value in (float("nan"), -0.0, float("inf")))
    good_scale = struct.pack(">d", CONFIG["scale"])
    config = config_bytes()

    def config_with(name: str, value: bytes) -> bytes:
        """The CONFIG with the bytes of its only double of that kind replaced."""
        old = good_scale if name == "scale" else struct.pack(">d", CONFIG["norm_slack"])
        assert config.count(old) == 1
        return config.replace(old, value)

    def accepted(*members: int) -> bytes:
        return items([u16(i) + hash_ + signature for i in members])

    def ids(*members: int) -> bytes:
        return items([u16(i) for i in members])

    leaf = u16(0) + blob(bytes(80)) + hash_ * 3
    dealt = u16(0) + hash_ + signature + blob(head(12) + leaf) + items([hash_, hash_])
    inputs = items([u16(0) + hash_, u16(1) + hash_])
    shares = head(18) + signed + view + hash_
    values = head(19) + signed + view + hash_
    cases = [
        ("empty", "Advert", b"", "no bytes"),
        ("other_magic", "Advert", b"fsb\x01" + advert[4:], "another protocol"),
        ("other_version", "Advert", b"fsa\x02" + advert[4:], "another wire version"),
        ("other_type", "Advert", head(11) + advert[5:], "a dealing's type"),
        ("statement_as_envelope", "Envelope", advert, "content without its envelope"),
        ("cut", "Advert", advert[:-1], "a byte too few"),
        ("trailing", "Advert", advert + b"\0", "a byte too many"),
        ("twice", "Advert", advert * 2, "two records"),
        ("envelope_claims_4_gib", "Envelope", head(1) + b"\xff" * 4 + advert, "a length that is not there"),
        ("envelope_content_over_limit", "Envelope", head(1) + u32(2**21 + 1) + bytes(64), "a length over the limit of contents"),
        ("envelope_without_attachment", "Envelope", envelope[:-4], "no length of the attachment"),
        ("envelope_trailing", "Envelope", envelope + b"\0", "a byte after the attachment"),
        ("leaf_box_over_limit", "DealtLeaf", head(12) + u16(0) + blob(bytes(81)) + hash_ * 3, "a box has at most 80 bytes"),
        ("leaves_claim_more", "DealtLeaves", head(13) + u16(2) + leaf, "two leaves claimed, one there"),
        ("input_disputes_twice", "Input", head(14) + signed + view + hash_ + ids(2, 2), "one dealer disputed twice"),
        ("input_disputes_unordered", "Input", head(14) + signed + view + hash_ + ids(3, 2), "not increasing"),
        ("share_of_31_bytes", "Shares", shares + items([blob(bytes(31))]), "a share is whole or absent"),
        ("share_of_33_bytes", "Shares", shares + items([blob(bytes(33))]), "over the limit"),
        ("values_of_a_peer_twice", "BlameValues", values + items([u16(2) + blob(bytes(32))] * 2), "two values for one edge"),
        ("values_unordered", "BlameValues", values + items([u16(3) + blob(b""), u16(2) + blob(b"")]), "not increasing"),
        ("dealers_unordered", "MaskedInputRequest", head(31) + context + items([dealt.replace(u16(0), u16(9), 1), dealt]) + items([]), "not increasing"),
        ("dealer_twice", "MaskedInputRequest", head(31) + context + items([dealt, dealt]) + items([]), "one dealer twice"),
        ("removed_edge_backwards", "MaskedInputRequest", head(31) + context + items([dealt]) + items([u16(2) + u16(1)]), "high end first"),
        ("removed_loop", "MaskedInputRequest", head(31) + context + items([dealt]) + items([u16(2) + u16(2)]), "an edge of one end"),
        ("removed_twice", "MaskedInputRequest", head(31) + context + items([dealt]) + items([u16(1) + u16(2)] * 2), "one edge twice"),
        ("removed_unordered", "MaskedInputRequest", head(31) + context + items([dealt]) + items([u16(1) + u16(3), u16(1) + u16(2)]), "not increasing"),
        ("path_over_limit", "MaskedInputRequest", head(31) + context + items([u16(0) + hash_ + signature + blob(b"") + items([hash_] * 17)]) + items([]), "17 nodes"),
        ("inputs_unordered", "SketchRequest", head(32) + context + items([u16(1) + hash_, u16(0) + hash_]) + items([hash_]) + hash_, "not increasing"),
        ("nonce_short", "SketchRequest", head(32) + context + inputs + items([hash_]) + hash_[:-1], "31 bytes of nonce"),
        ("accepted_twice", "ConsistencyRequest", head(33) + context + accepted(1, 1) + ids(2), "one member twice in A"),
        ("accepted_unordered", "ConsistencyRequest", head(33) + context + accepted(1, 0) + ids(2), "not increasing"),
        ("rejected_twice", "ConsistencyRequest", head(33) + context + accepted(0, 1) + ids(2, 2), "one member twice in D"),
        ("rejected_over_limit", "ConsistencyRequest", head(33) + context + accepted(0) + ids(*range(1025)), "more members than a cohort has"),
        ("signer_twice", "UnmaskRequest", head(34) + context + accepted(0, 1) + ids(2) + items([u16(0) + signature] * 2), "one signer counted twice"),
        ("unmask_accepted_twice", "UnmaskRequest", head(34) + context + accepted(0, 0) + ids(2) + items([u16(0) + signature]), "as in stage 5"),
        ("unmask_without_certificate", "UnmaskRequest", head(34) + context + accepted(0, 1) + ids(2), "no count of signers"),
        ("config_nan", "RoundConfig", config_with("scale", nan), "a scale that is no number"),
        ("config_minus_zero", "RoundConfig", config_with("scale", minus_zero), "minus zero has no encoding"),
        ("config_infinity", "RoundConfig", config_with("norm_slack", infinity), "an infinite slack"),
        ("config_threshold_lowered", "RoundConfig", config_bytes(threshold=2), "t does not follow from N and c"),
        ("config_nobody_corrupt", "RoundConfig", config_bytes(num_corrupt=0), "c = 0"),
        ("config_sum_over_one", "RoundConfig", config_bytes(minimum_accepted=2), "a_min = c + 1"),
        ("config_cohort_out_of_range", "RoundConfig", config_bytes(cohort=1), "cohort 1 of 1"),
        ("config_third_attempt", "RoundConfig", config_bytes(attempt=3), "past the cap"),
        ("config_round_zero", "RoundConfig", config_bytes(server_round=0), "rounds count from 1"),
        ("config_seven_rows", "RoundConfig", config_bytes(num_rows=7), "rows come in groups of eight"),
        ("config_could_wrap", "RoundConfig", config_bytes(norm_bound=2**28), "2·n·L = 2**31"),
        ("config_newline", "RoundConfig", config_bytes(run_id="run\n1"), "not printable"),
        ("config_no_run", "RoundConfig", config_bytes(run_id=""), "empty text"),
        ("config_not_utf8", "RoundConfig", config.replace("ä".encode(), b"\xc3\x28"), "not UTF-8"),
        ("config_overlong_utf8", "RoundConfig", config.replace("ä".encode(), b"\xc1\xa1"), "an overlong form of a letter"),
    ]  # fmt: skip
    return {"messages": [{"id": name, "kind": kind, "why": why, "bytes": data.hex()} for name, kind, data, why in cases]}


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
    "secagg_messages.json": messages,
    "secagg_bad_messages.json": bad_messages,
}


def contents() -> dict[str, str]:
    """Name and text of every file."""
    note = "made by generate_secagg.py, which imports nothing of fedsec"
    return {name: json.dumps({"source": note} | make(), indent=1, allow_nan=False) + "\n" for name, make in FILES.items()}


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent
    for file_name, text in contents().items():
        (folder / file_name).write_text(text, encoding="utf-8")
