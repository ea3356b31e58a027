"""Sketches: exact products with R, and checks that the known tricks against weaker ones do not pass."""

import hashlib
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.errors import LocalProtocolError, VerificationError
from fedsec.secagg import sketch as module
from fedsec.secagg.labels import MAX_DIMENSION
from fedsec.secagg.sketch import SketchMatrix, make_sketch, verify_norm, verify_opening

SEED = bytes(range(32))


def slow_product(matrix: SketchMatrix, x: np.ndarray) -> list[int]:
    """R·x with Python's integers, from R written out."""
    values = x.tolist()
    return [sum(entry * value for entry, value in zip(row, values, strict=True)) for row in matrix.entries(0, matrix.num_rows).tolist()]


def opened(*vectors: list[int]) -> np.ndarray:
    """The sum in the ring, lifted without the check of n·L: what an attacker can bring about at most."""
    total = np.zeros(len(vectors[0]), dtype=np.uint32)
    for vector in vectors:
        total += (np.array(vector, dtype=object) % 2**32).astype(np.uint32)
    return total.astype(np.int32)


# --- vectors ---


def test_products_are_the_vectors(vectors) -> None:
    for case in vectors("sketch")["products"]:
        matrix = SketchMatrix.derive(
            bytes.fromhex(case["root"]), bytes.fromhex(case["nonce"]), num_rows=case["num_rows"], dimension=case["dimension"]
        )
        assert matrix.seed.hex() == case["seed"]
        entries = matrix.entries(0, matrix.num_rows)
        assert entries[0, :40].tolist() == case["first_entries"]
        assert hashlib.sha256(entries.tobytes()).hexdigest() == case["entries_sha256"], case["id"]
        stream = hashlib.shake_256(case["x_little_endian_shake256_of"].encode()).digest(4 * matrix.dimension)
        x = np.frombuffer(stream, dtype="<i4").copy()
        x[:4] = case["x_start"]
        assert matrix.product(x).tolist() == case["expected"], case["id"]
        assert matrix.ring_product(x.astype(np.uint32)).tolist() == case["ring_expected"], case["id"]


def test_bad_openings_are_refused(vectors) -> None:
    file = vectors("bad_sketch")
    matrix = SketchMatrix.derive(
        bytes.fromhex(file["root"]), bytes.fromhex(file["nonce"]), num_rows=file["num_rows"], dimension=file["dimension"]
    )
    good = file["accepted"]
    verify_opening(matrix, np.array(good["total"], np.int32), np.array(good["sketches"], np.int32))
    for case in file["openings"]:
        with pytest.raises(VerificationError, match="contradicts"):
            verify_opening(matrix, np.array(case["total"], np.int32), np.array(case["sketches"], np.int32))


# --- exactness ---


@settings(max_examples=60, deadline=None)
@given(dimension=st.integers(1, 60), groups=st.integers(1, 3), data=st.data())
def test_the_product_is_exact_over_the_integers(dimension: int, groups: int, data: st.DataObject) -> None:
    entries = st.one_of(st.integers(-(2**32), 2**32), st.sampled_from([-(2**32), -(2**31), -1, 0, 1, 2**31, 2**32]))
    x = np.array(data.draw(st.lists(entries, min_size=dimension, max_size=dimension)), dtype=np.int64)
    matrix = SketchMatrix(seed=data.draw(st.binary(min_size=32, max_size=32)), num_rows=8 * groups, dimension=dimension)
    assert matrix.product(x).tolist() == slow_product(matrix, x)


@pytest.mark.parametrize("value", [2**32, -(2**32), 2**32 - 1, 2**31 + 1])
def test_the_largest_entries_stay_exact_over_several_pieces(value: int) -> None:
    """Sums reach 2**48 here: one bit lost anywhere would show."""
    dimension = 2 * module._PIECE + 5
    matrix = SketchMatrix(seed=SEED, num_rows=8, dimension=dimension)
    sums = [int(row.sum(dtype=np.int64)) for row in matrix.entries(0, 8)]
    assert matrix.product(np.full(dimension, value, dtype=np.int64)).tolist() == [value * total for total in sums]
    alternating = np.where(matrix.entries(3, 4)[0] > 0, value, -1).astype(np.int64)
    plus = int(np.count_nonzero(matrix.entries(3, 4)[0] > 0))
    minus = int(np.count_nonzero(matrix.entries(3, 4)[0] < 0))
    assert matrix.product(alternating)[3] == value * plus + minus


def test_the_proof_of_exactness_is_about_this_code() -> None:
    assert MAX_DIMENSION * module._MAX_ENTRY < 2**63
    assert module._WIDE_PIECE * module._MAX_ENTRY <= 2**53


@settings(max_examples=40, deadline=None)
@given(dimension=st.integers(1, 60), groups=st.integers(1, 3), count=st.integers(0, 9), data=st.data())
def test_products_of_several_vectors_are_exact_over_the_integers(dimension: int, groups: int, count: int, data: st.DataObject) -> None:
    entries = st.one_of(st.integers(-(2**32), 2**32), st.sampled_from([-(2**32), -(2**31), -1, 0, 1, 2**31, 2**32]))
    many = data.draw(st.lists(st.lists(entries, min_size=dimension, max_size=dimension), min_size=count, max_size=count))
    vectors = [np.array(x, dtype=np.int64) for x in many]
    matrix = SketchMatrix(seed=data.draw(st.binary(min_size=32, max_size=32)), num_rows=8 * groups, dimension=dimension)
    products = matrix.product_many(vectors)
    assert products.shape == (count, 8 * groups)
    assert products.dtype == np.int64
    assert products.tolist() == [slow_product(matrix, x) for x in vectors]


@pytest.mark.parametrize("count", [1, module._FEW - 1, module._FEW, module._MANY, module._MANY + 1, 2 * module._MANY + 3])
@pytest.mark.parametrize("keep", [False, True])
def test_products_of_several_large_vectors_are_those_of_each(count: int, keep: bool) -> None:
    """Over the borders of pieces, blocks and tiles, with the largest entries of either sign, against R written out in int64."""
    dimension, num_rows = module._WIDE_PIECE + module._BLOCK + module._TILE + 7, 72
    matrix = SketchMatrix(seed=SEED, num_rows=num_rows, dimension=dimension, keep=keep)
    rng = np.random.default_rng(count)
    extremes = np.array([2**32, -(2**32), 2**32 - 1, 2**31, -(2**31), 2**31 - 1, 1, 0])
    vectors = [rng.choice(extremes, dimension) for _ in range(count)]
    entries = matrix.entries(0, num_rows).astype(np.int64)
    vectors[-1] = np.where(entries[9] > 0, 2**32, -(2**32))  # the row sum that is largest
    assert matrix.product_many(vectors).tolist() == [(entries @ x).tolist() for x in vectors]
    assert matrix.product_many(vectors[-1:])[0].tolist() == matrix.product(vectors[-1]).tolist()


def test_vectors_of_several_types_go_together(expand) -> None:
    matrix = SketchMatrix(seed=SEED, num_rows=16, dimension=500)
    words = np.frombuffer(expand("words", 2000), dtype=np.uint32)
    vectors = [words, words.astype(np.int32), words.astype(np.int64), -words.astype(np.int64)] * 2
    assert matrix.product_many(vectors).tolist() == [matrix.product(x).tolist() for x in vectors]
    together = np.stack([words, words[::-1]] * 4)
    assert matrix.ring_product_many(together).tolist() == [matrix.ring_product(row).tolist() for row in together]
    assert matrix.ring_product_many(together).dtype == np.uint32


def test_no_product_in_tiles_is_large_enough_for_threads_of_blas() -> None:
    """OpenBLAS: 65536 times 4 multiplications. With two threads on busy cores a product took twenty times the CPU time."""
    assert module._TILE * module._TILE_AREA <= 2**18
    assert module._TILE_AREA // module._MANY >= 1


def test_a_sum_of_64_clients_is_checked_exactly(expand) -> None:
    """64 encoded updates of the largest sound norm: the opening check holds, and one step anywhere breaks it."""
    dimension, num_rows, norm_bound = 3000, 64, (2**31 - 1) // 128
    matrix = SketchMatrix(seed=SEED, num_rows=num_rows, dimension=dimension)
    clients = np.frombuffer(expand("clients", 64 * dimension), dtype=np.int8).reshape(64, dimension).astype(np.float64)
    clients = np.trunc(clients * (norm_bound / np.linalg.norm(clients, axis=1, keepdims=True))).astype(np.int32)
    sketches = np.stack([make_sketch(matrix, client) for client in clients])
    total = clients.sum(axis=0, dtype=np.int32)
    verify_opening(matrix, total, sketches)
    total[1234] += 1
    with pytest.raises(VerificationError):
        verify_opening(matrix, total, sketches)


@settings(deadline=None)
@given(
    plain=st.lists(st.integers(-(2**20), 2**20), min_size=3, max_size=3), mask=st.lists(st.integers(0, 2**32 - 1), min_size=3, max_size=3)
)
def test_sketches_of_masks_balance_in_the_ring_and_there_only(plain: list[int], mask: list[int]) -> None:
    """BLAME's equation s = R·y - R·PRG holds modulo 2**32. Over the integers it fails where a mask wraps, and would show that."""
    matrix = SketchMatrix(seed=SEED, num_rows=16, dimension=3)
    x, m = np.array(plain, dtype=np.int32), np.array(mask, dtype=np.uint32)
    y = x.astype(np.uint32) + m
    expected = matrix.product(x).astype(np.uint32)
    assert np.array_equal(matrix.ring_product(y) - matrix.ring_product(m), expected)
    assert matrix.ring_product(m).tolist() == [value % 2**32 for value in slow_product(matrix, m)]


def test_only_unsigned_words_have_a_sketch_in_the_ring() -> None:
    for words in (np.zeros(3, np.int32), np.zeros(3, np.uint64), np.zeros(4, np.uint32)):
        with pytest.raises(ValueError):
            SketchMatrix(seed=SEED, num_rows=16, dimension=3).ring_product(words)
        with pytest.raises(ValueError):
            SketchMatrix(seed=SEED, num_rows=16, dimension=3).ring_product_many([np.zeros(3, np.uint32), words])


def test_keeping_the_words_changes_nothing_but_the_work(expand) -> None:
    dimension = module._PIECE + 17
    x = np.frombuffer(expand("x", 4 * dimension), dtype=np.int32)
    kept = SketchMatrix(seed=SEED, num_rows=16, dimension=dimension, keep=True)
    expected = SketchMatrix(seed=SEED, num_rows=16, dimension=dimension).product(x).tolist()
    assert kept.product(x).tolist() == expected
    assert kept.product(x).tolist() == expected
    assert 8 * sum(words.nbytes for words in kept._kept.values()) == 2 * 16 * dimension
    assert np.array_equal(kept.entries(5, 7), SketchMatrix(seed=SEED, num_rows=16, dimension=dimension).entries(5, 7))


# --- R itself ---


def test_fewer_rows_and_coordinates_are_a_corner() -> None:
    large = SketchMatrix(seed=SEED, num_rows=32, dimension=100).entries(0, 32)
    small = SketchMatrix(seed=SEED, num_rows=16, dimension=33).entries(0, 16)
    assert np.array_equal(large[:16, :33], small)


def test_entries_are_minus_one_zero_zero_one(expand) -> None:
    """A quarter, a half, a quarter; and every two rows are uncorrelated. False alarm under 1e-6: 6 standard deviations, 500 statistics."""
    dimension = 1 << 15
    rows = SketchMatrix(seed=SEED, num_rows=32, dimension=dimension).entries(0, 32).astype(np.int64)
    assert set(np.unique(rows)) == {-1, 0, 1}
    for value, share in ((-1, 0.25), (0, 0.5), (1, 0.25)):
        counts = np.count_nonzero(rows == value, axis=1)
        assert (np.abs(counts - share * dimension) < 6 * math.sqrt(share * (1 - share) * dimension)).all()
    correlations = (rows @ rows.T)[np.triu_indices(32, 1)]
    assert (np.abs(correlations) < 6 * math.sqrt(dimension / 4)).all()


def test_a_root_or_nonce_that_differs_in_one_bit_gives_another_matrix() -> None:
    made = {
        SketchMatrix.derive(root, nonce, num_rows=8, dimension=64).entries(0, 8).tobytes()
        for root in (bytes(32), bytes(31) + b"\x01")
        for nonce in (bytes(32), b"\x80" + bytes(31))
    }
    assert len(made) == 4
    assert SketchMatrix.derive(b"ab", b"c", num_rows=8, dimension=64) != SketchMatrix.derive(b"a", b"bc", num_rows=8, dimension=64)


def test_the_squared_length_of_a_sketch_is_k_halves_of_the_updates(expand) -> None:
    """E‖R·x‖² = k/2 ‖x‖². False alarm under 1e-6: the ratio's deviation is at most sqrt(2/k) = 0.044 at k = 1024; the margin is five."""
    x = np.frombuffer(expand("x", 4000), dtype=np.int16).astype(np.int32)
    rows = SketchMatrix(seed=SEED, num_rows=1024, dimension=len(x)).product(x).astype(np.float64)
    assert rows @ rows / (512 * float(x.astype(np.float64) @ x)) == pytest.approx(1, abs=5 * math.sqrt(2 / 1024))


@pytest.mark.parametrize(
    "settings_of",
    [
        {"seed": bytes(31)},
        {"num_rows": 0},
        {"num_rows": 4},
        {"num_rows": 12},
        {"num_rows": -8},
        {"num_rows": 4104},
        {"dimension": 0},
        {"dimension": 2**26 + 1},
    ],
)
def test_bad_matrices_are_refused(settings_of: dict) -> None:
    with pytest.raises(ValueError):
        SketchMatrix(**({"seed": SEED, "num_rows": 8, "dimension": 4} | settings_of))


@pytest.mark.parametrize(
    "x",
    [
        np.zeros(4),
        np.zeros(4, np.float32),
        np.zeros(4, np.int16),
        np.zeros(4, np.uint64),
        np.zeros(3, np.int32),
        np.zeros((4, 1), np.int32),
        np.array([2**32 + 1, 0, 0, 0]),
        np.array([0, -(2**32) - 1, 0, 0]),
        np.array([-(2**63), 0, 0, 0]),
        np.array([2**63 - 1, 0, 0, 0]),
    ],
)
def test_vectors_whose_product_might_not_be_exact_are_refused(x: np.ndarray) -> None:
    with pytest.raises(ValueError):
        SketchMatrix(seed=SEED, num_rows=8, dimension=4).product(x)
    for count in (1, 10):
        with pytest.raises(ValueError):
            SketchMatrix(seed=SEED, num_rows=8, dimension=4).product_many([np.zeros(4, np.int32)] * count + [x])


@pytest.mark.parametrize(("first", "last"), [(-1, 2), (0, 9), (5, 4)])
def test_rows_that_do_not_exist_are_refused(first: int, last: int) -> None:
    with pytest.raises(ValueError):
        SketchMatrix(seed=SEED, num_rows=8, dimension=4).entries(first, last)


# --- attacks on the opening check ---


def attacked(expand, num_rows: int = 64, dimension: int = 50) -> tuple[SketchMatrix, list[list[int]], np.ndarray]:
    """Three clients with small honest vectors; the first is the attacker. R, vectors, honest sketches."""
    matrix = SketchMatrix.derive(b"root", b"nonce", num_rows=num_rows, dimension=dimension)
    clients = [np.frombuffer(expand(f"client {i}", dimension), dtype=np.int8).astype(np.int32) for i in range(3)]
    return matrix, [client.tolist() for client in clients], np.stack([make_sketch(matrix, client) for client in clients])


def test_half_the_ring_on_two_coordinates_is_seen_by_the_zeros(expand) -> None:
    """2**31 ≡ -2**31: rows of ±1 alone give a multiple of 2**32. Here about half of the rows hold one zero of the two."""
    matrix, vectors, sketches = attacked(expand)
    poison = [0] * matrix.dimension
    poison[7] = poison[30] = 2**31
    signs = np.where(np.arange(matrix.num_rows * matrix.dimension).reshape(matrix.num_rows, -1) % 3, 1, -1)
    assert not ((signs.astype(object) @ np.array(poison, dtype=object)) % 2**32).any()  # a ±1 sketch modulo 2**32 sees nothing
    total = opened(vectors[0], vectors[1], vectors[2], poison)
    with pytest.raises(VerificationError):
        verify_opening(matrix, total, sketches)
    caught = matrix.product(opened(poison)) % 2**32
    assert matrix.num_rows / 4 < np.count_nonzero(caught) < 3 * matrix.num_rows / 4


def test_a_claim_reduced_by_multiples_of_the_ring_is_refused(expand) -> None:
    """R·V - 2**32·z: the poison V is large, the claim fits 32 bits and is right modulo 2**32."""
    matrix, vectors, sketches = attacked(expand)
    poison = [300_000_000 * (-1) ** j for j in range(matrix.dimension)]
    claim = np.array(slow_product(matrix, np.array(poison, dtype=np.int64)), dtype=object)
    reduced = (claim + 2**31) % 2**32 - 2**31
    assert (reduced != claim).any()
    total = opened(*vectors, poison)
    lying = sketches.astype(np.int64) + np.array([reduced.astype(np.int64), np.zeros(64, np.int64), np.zeros(64, np.int64)])
    claimed = ((lying + 2**31) % 2**32 - 2**31).astype(np.int32)
    assert ((matrix.product(total) - claimed.sum(axis=0, dtype=np.int64)) % 2**32 == 0).all()  # a check modulo 2**32 accepts
    with pytest.raises(VerificationError):
        verify_opening(matrix, total, claimed)


def test_colluders_whose_claims_are_off_by_one_whole_ring_are_refused(expand) -> None:
    """Three claims that fit 32 bits each and add up to the right row plus 2**32: a sum in 32 bits takes it for the right row."""
    matrix, vectors, sketches = attacked(expand)
    claimed = sketches.copy()
    claimed[:2, 5] = 2**31 - 1
    claimed[2, 5] = int(sketches[:, 5].sum(dtype=np.int64)) + 2
    assert claimed[:, 5].sum(dtype=np.int64) - sketches[:, 5].sum(dtype=np.int64) == 2**32
    assert claimed[:, 5].sum(dtype=np.int32) == sketches[:, 5].sum(dtype=np.int32)
    with pytest.raises(VerificationError, match="1 of 64 rows"):
        verify_opening(matrix, opened(*vectors), claimed)


def test_one_entry_plus_a_whole_ring_is_the_same_upload_and_no_claim_of_it_fits(expand) -> None:
    """x and x + 2**32 on one coordinate are masked alike; the second's sketch is no int32, and reduced it is the first's."""
    matrix, vectors, sketches = attacked(expand)
    more = [*vectors[0]]
    more[int(np.argmin(more))] += 2**32
    assert np.array_equal(opened(more, *vectors[1:]), opened(*vectors))
    rows = matrix.product(np.array(more))
    changed = rows != sketches[0]
    assert changed.any()
    assert (np.abs(rows[changed]) >= 2**31).all()
    assert np.array_equal(rows.astype(np.uint32), sketches[0].astype(np.uint32))


def test_a_pair_of_lies_that_cancel_passes_because_only_the_sum_counts(expand) -> None:
    """Documented: what enters the model is the sum, and its sketch is right."""
    matrix, vectors, sketches = attacked(expand)
    sketches[0] += 1000
    sketches[1] -= 1000
    verify_opening(matrix, opened(*vectors), sketches)


def test_a_lone_lie_in_any_single_row_is_refused(expand) -> None:
    matrix, vectors, sketches = attacked(expand)
    total = opened(*vectors)
    for row in range(matrix.num_rows):
        lying = sketches.copy()
        lying[2, row] += 1
        with pytest.raises(VerificationError, match="1 of 64 rows"):
            verify_opening(matrix, total, lying)


def test_a_poison_on_one_coordinate_is_missed_by_a_row_only_half_of_the_time(expand) -> None:
    """Each row catches a fixed nonzero difference with probability 1/2 or more: 64 rows miss it with 2**-64."""
    matrix, _, _ = attacked(expand)
    for coordinate in range(matrix.dimension):
        caught = np.count_nonzero(matrix.entries(0, 64)[:, coordinate])
        assert 8 < caught < 56  # false alarm under 1e-8 in all


@pytest.mark.parametrize(
    ("total", "sketches"),
    [
        (np.zeros(4, np.int64), np.zeros((1, 8), np.int32)),
        (np.zeros(4, np.uint32), np.zeros((1, 8), np.int32)),
        (np.zeros(5, np.int32), np.zeros((1, 8), np.int32)),
        (np.zeros(4, np.int32), np.zeros((1, 16), np.int32)),
        (np.zeros(4, np.int32), np.zeros(8, np.int32)),
        (np.zeros(4, np.int32), np.zeros((1, 8), np.int64)),
        (np.zeros(4, np.int32), np.zeros((1025, 8), np.int32)),
        (np.zeros(4, np.int32), np.zeros((0, 8), np.int32)),
    ],
)
def test_openings_of_other_shapes_are_refused(total: np.ndarray, sketches: np.ndarray) -> None:
    with pytest.raises(ValueError):
        verify_opening(SketchMatrix(seed=SEED, num_rows=8, dimension=4), total, sketches)


# --- the sketch of a client, and the norm gate ---


def test_a_vector_that_was_not_encoded_may_not_be_sketched() -> None:
    matrix = SketchMatrix(seed=SEED, num_rows=64, dimension=64)
    with pytest.raises(LocalProtocolError):
        make_sketch(matrix, np.full(64, 2**31 - 1, dtype=np.int32))


def test_sketches_of_the_largest_sound_norm_fit(expand) -> None:
    norm_bound = math.isqrt((2**63 - 1) // 81)
    for spread in (1, 9, 400):
        x = np.zeros(400, dtype=np.int32)
        x[:spread] = int(norm_bound / math.sqrt(spread))
        assert make_sketch(SketchMatrix(seed=SEED, num_rows=512, dimension=400), x).dtype == np.int32


def test_the_gate_compares_exactly() -> None:
    """k = 8, u = 2, L = 5: the limit of ‖s‖² is 2 · 4 · 25 = 200; it is met by 14² + 2² and passed by one step more."""
    verify_norm(np.array([14, 2, 0, 0, 0, 0, 0, 0], dtype=np.int32), norm_bound=5, slack=2.0)
    with pytest.raises(VerificationError):
        verify_norm(np.array([14, 2, 1, 0, 0, 0, 0, 0], dtype=np.int32), norm_bound=5, slack=2.0)


@settings(deadline=None)
@given(
    values=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=16),
    norm_bound=st.integers(1, 2**28),
    slack=st.floats(1.01, 3.99),
)
def test_the_gate_is_the_formula_for_the_largest_numbers_too(values: list[int], norm_bound: int, slack: float) -> None:
    limit = Fraction(slack) * len(values) * norm_bound**2 / 2
    sketch = np.array(values, dtype=np.int32)
    if sum(value * value for value in values) <= limit:
        verify_norm(sketch, norm_bound=norm_bound, slack=slack)
    else:
        with pytest.raises(VerificationError):
            verify_norm(sketch, norm_bound=norm_bound, slack=slack)


def test_honest_sketches_pass_the_gate_and_tenfold_ones_do_not(expand) -> None:
    """At k = 256 an honest sketch passes u = 2 but for 2**-40 or so; 10 times the norm is 50 times over the limit."""
    matrix = SketchMatrix(seed=SEED, num_rows=256, dimension=2000)
    x = np.frombuffer(expand("x", 4000), dtype=np.int16).astype(np.int32)
    norm_bound = math.isqrt(int(x.astype(np.int64) @ x.astype(np.int64))) + 1
    verify_norm(make_sketch(matrix, x), norm_bound=norm_bound, slack=2.0)
    with pytest.raises(VerificationError):
        verify_norm(make_sketch(matrix, 10 * x), norm_bound=norm_bound, slack=2.0)


@pytest.mark.parametrize("slack", [math.nan, math.inf, 4.0, 1.0, 0.0, -2.0])
def test_a_slack_that_opens_the_gate_is_refused(slack: float) -> None:
    with pytest.raises(ValueError):
        verify_norm(np.zeros(8, np.int32), norm_bound=5, slack=slack)


@pytest.mark.parametrize("sketch", [np.zeros(0, np.int32), np.zeros(8, np.int64), np.zeros((2, 4), np.int32), np.zeros(8)])
def test_sketches_of_another_kind_are_refused(sketch: np.ndarray) -> None:
    with pytest.raises(ValueError):
        verify_norm(sketch, norm_bound=5, slack=2.0)
