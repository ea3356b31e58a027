"""Encoding: within the norm bound whatever comes, unbiased, and sums that come back exactly."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedsec.errors import ConfigError, VerificationError
from fedsec.secagg.fixedpoint import BYTES_PER_ENTRY, FixedPoint, to_ring

LARGEST_L = math.isqrt((2**63 - 1) // 81)


def encoding(**changes: float) -> FixedPoint:
    return FixedPoint(**({"scale": 1.0, "norm_bound": 1000, "num_clients": 3, "dimension": 4} | changes))


def squared(encoded: np.ndarray) -> int:
    return sum(value * value for value in encoded.tolist())


# --- vectors ---


def test_encodings_are_the_vectors(vectors) -> None:
    for case in vectors("fixedpoint")["encodings"]:
        update = np.array(case["update"], dtype=np.float32)
        made = FixedPoint(scale=case["scale"], norm_bound=case["norm_bound"], num_clients=case["num_clients"], dimension=len(update))
        assert made.encode(update, bytes.fromhex(case["randomness"])).tolist() == case["expected"], case["id"]


def test_lifted_sums_are_the_vectors(vectors) -> None:
    for case in vectors("fixedpoint")["sums"]:
        total = np.array(case["total"], dtype=np.uint32)
        made = encoding(norm_bound=case["norm_bound"], num_clients=case["num_clients"], dimension=len(total))
        assert made.lift(total).tolist() == case["expected"], case["id"]


def test_bad_parameters_are_refused(vectors) -> None:
    for case in vectors("bad_fixedpoint")["parameters"]:
        with pytest.raises(ConfigError):
            encoding(**{name: case[name] for name in ("scale", "norm_bound", "num_clients", "dimension")})


def test_bad_sums_are_refused(vectors) -> None:
    for case in vectors("bad_fixedpoint")["sums"]:
        with pytest.raises(VerificationError):
            encoding(dimension=2).lift(np.array(case["total"], dtype=np.uint32))


# --- the static checks ---


def test_the_largest_sound_norm_bounds_pass_and_the_next_do_not() -> None:
    for clients in (4, 64):
        largest = (2**31 - 1) // (2 * clients)
        encoding(num_clients=clients, norm_bound=largest)
        with pytest.raises(ConfigError, match="wrap"):
            encoding(num_clients=clients, norm_bound=largest + 1)
    encoding(num_clients=3, norm_bound=LARGEST_L)
    with pytest.raises(ConfigError, match="sketches"):
        encoding(num_clients=3, norm_bound=LARGEST_L + 1)


@pytest.mark.parametrize("field", ["scale", "norm_bound"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_parameters_that_are_not_finite_are_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError):
        encoding(**{field: value})


@settings(deadline=None)
@given(
    norm=st.floats(1e-30, 1e30),
    num_clients=st.integers(2, 1024),
    dimension=st.sampled_from([1, 2, 650, 10**6]),
)
def test_the_chosen_encoding_is_the_finest_that_never_shrinks(norm: float, num_clients: int, dimension: int) -> None:
    made = FixedPoint.for_norm(norm, num_clients=num_clients, dimension=dimension)
    assert made.scale * norm <= made.signal_bound < 2 * made.scale * norm
    assert math.frexp(made.scale)[0] == 0.5


@pytest.mark.parametrize("norm", [0.0, -1.0, math.nan, math.inf, -math.inf, 1e-310, 1e-70, 1e70, 1e308])
def test_no_encoding_for_a_norm_without_sense(norm: float) -> None:
    with pytest.raises(ConfigError):
        FixedPoint.for_norm(norm, num_clients=4, dimension=10)


# --- encode ---

FLOATS = hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(width=32, allow_nan=False, allow_infinity=False))


@settings(deadline=None)
@given(update=FLOATS, exponent=st.integers(-200, 200), norm_bound=st.integers(8, LARGEST_L), seed=st.integers(0, 2**32 - 1))
def test_the_norm_bound_holds_for_every_update_and_scale(update: np.ndarray, exponent: int, norm_bound: int, seed: int) -> None:
    made = encoding(scale=math.ldexp(1.0, exponent), norm_bound=norm_bound, num_clients=1, dimension=len(update))
    randomness = np.random.default_rng(seed).bytes(BYTES_PER_ENTRY * len(update))
    assert squared(made.encode(update, randomness)) <= norm_bound**2


@pytest.mark.parametrize("dimension", [1, 2, 1000, 70_000])
def test_the_norm_bound_holds_when_every_entry_is_rounded_up(dimension: int) -> None:
    """The worst case of the proof: an update on the bound, every random word the largest."""
    norm_bound = 2 * math.isqrt(dimension) + 40
    made = encoding(scale=1e6, norm_bound=norm_bound, num_clients=2, dimension=dimension)
    encoded = made.encode(np.ones(dimension, dtype=np.float32), b"\xff" * (BYTES_PER_ENTRY * dimension))
    assert squared(encoded) <= norm_bound**2


def test_rounding_goes_up_for_exactly_the_fraction_of_random_words() -> None:
    """Exact unbiasedness: of the 2**32 random words, as many round up as the fraction says, for both signs."""
    for value in (0.3, -0.3, 2.75, -2.75, 2.0**-20, 123.456):
        number = np.float32(value)
        fraction = Fraction(float(number)) - math.floor(number)
        up = round(fraction * 2**32)
        made = encoding(dimension=2)
        words = np.array([2**32 - up - 1, 2**32 - up], dtype="<u4")
        low, high = made.encode(np.full(2, number), words.tobytes()).tolist()
        assert (low, high) == (math.floor(number), math.floor(number) + 1)


def test_rounding_is_unbiased_over_many_draws() -> None:
    """A biased rounding would move every sum the same way. False alarm: 1e-9 (six standard deviations), seed fixed."""
    count = 400_000
    made = encoding(norm_bound=10**6, dimension=count)
    for value in (0.3, -0.3, 0.001, -0.999):
        number = np.float32(value)
        encoded = made.encode(np.full(count, number), np.random.default_rng(1).bytes(BYTES_PER_ENTRY * count))
        deviation = math.sqrt(count) / 2
        assert abs(encoded.sum() - count * float(number)) < 6 * deviation


def test_an_update_within_the_bound_is_not_shrunk(expand) -> None:
    made = FixedPoint.for_norm(5.0, num_clients=64, dimension=1000)
    update = np.frombuffer(expand("update", 2000), dtype=np.int16).astype(np.float32)
    update *= np.float32(4.999 / np.linalg.norm(update.astype(np.float64)))
    encoded = made.encode(update, expand("bits", 4000))
    assert np.abs(encoded - update.astype(np.float64) * made.scale).max() < 1


def test_a_long_update_keeps_its_direction(expand) -> None:
    made = FixedPoint.for_norm(1.0, num_clients=8, dimension=500)
    update = np.frombuffer(expand("update", 1000), dtype=np.int16).astype(np.float32)
    encoded = made.encode(update, expand("bits", 2000)).astype(np.float64)
    wanted = update.astype(np.float64)
    assert encoded @ wanted / np.linalg.norm(encoded) / np.linalg.norm(wanted) > 1 - 1e-9
    assert np.linalg.norm(encoded) == pytest.approx(made.norm_bound, rel=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        encoding().encode(np.array([0, bad, 0, 0], dtype=np.float32), bytes(16))


@pytest.mark.parametrize(
    ("update", "size"),
    [
        (np.zeros(4), 16),
        (np.zeros(3, dtype=np.float32), 12),
        (np.zeros((2, 2), dtype=np.float32), 16),
        (np.zeros(4, dtype=np.float32), 15),
        (np.zeros(4, dtype=np.float32), 17),
        (np.zeros(4, dtype=np.float32), 0),
    ],
)
def test_other_shapes_and_lengths_are_refused(update: np.ndarray, size: int) -> None:
    with pytest.raises(ValueError):
        encoding().encode(update, bytes(size))


# --- sums ---


@settings(deadline=None)
@given(data=st.data(), clients=st.integers(1, 6))
def test_the_sum_of_encoded_updates_comes_back_exactly(data: st.DataObject, clients: int) -> None:
    made = encoding(norm_bound=(2**31 - 1) // (2 * 6), num_clients=6, dimension=5)
    updates = [data.draw(hnp.arrays(np.float32, 5, elements=st.floats(-1e9, 1e9, width=32))) for _ in range(clients)]
    encoded = [made.encode(update, data.draw(st.binary(min_size=20, max_size=20))) for update in updates]
    total = np.zeros(5, dtype=np.uint32)
    for vector in encoded:
        total += to_ring(vector)
    assert made.lift(total).tolist() == np.sum([vector.astype(np.int64) for vector in encoded], axis=0).tolist()


def test_decode_is_in_units_of_the_update() -> None:
    made = encoding(scale=8.0)
    assert made.decode(np.array([8, -4, 1, 0], dtype=np.int32)).tolist() == [1.0, -0.5, 0.125, 0.0]


def test_the_lifted_sum_does_not_share_memory_with_the_ring() -> None:
    total = np.zeros(4, dtype=np.uint32)
    lifted = encoding().lift(total)
    total += np.uint32(1)
    assert lifted.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("total", [np.zeros(4, dtype=np.int32), np.zeros(5, dtype=np.uint32), np.zeros((4, 1), dtype=np.uint32)])
def test_sums_of_another_kind_are_refused(total: np.ndarray) -> None:
    with pytest.raises(ValueError):
        encoding().lift(total)


def test_only_encoded_vectors_enter_the_ring() -> None:
    with pytest.raises(ValueError):
        to_ring(np.zeros(4, dtype=np.int64))
