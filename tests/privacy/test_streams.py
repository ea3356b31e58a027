"""Keyed streams. Statistical tests use fixed keys, so they pass or fail for good; each states how often a right sampler with a random key would fail."""

import copy
import doctest
import hashlib
import hmac
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedsec.privacy import streams
from fedsec.privacy.streams import Domain, KeyedStream, RoundStreams, derive_key, fresh_root, release_grid, simulation_root

KEY = bytes(range(32))
N = 1_000_000


@pytest.fixture(scope="module")
def sample() -> np.ndarray:
    return KeyedStream(KEY).gaussian(N, 1.0)


def hkdf_sha256(root: bytes, salt: bytes, info: bytes) -> bytes:
    """RFC 5869 for one block of output, from the standard library alone."""
    pseudorandom_key = hmac.new(salt, root, hashlib.sha256).digest()
    return hmac.new(pseudorandom_key, info + b"\x01", hashlib.sha256).digest()


class TestKeys:
    def test_derive_key_is_hkdf_sha256_over_length_prefixed_labels(self):
        info = b"\x00\x00\x00\x08client-3\x00\x00\x00\x05noise"
        assert derive_key(KEY, "client-3", "noise") == hkdf_sha256(KEY, b"fedsec/streams/v1", info)

    @given(st.lists(st.text(max_size=5), min_size=1, max_size=4), st.lists(st.text(max_size=5), min_size=1, max_size=4))
    @settings(max_examples=200, deadline=None)
    def test_different_label_lists_give_different_keys(self, first, second):
        assert (derive_key(KEY, *first) == derive_key(KEY, *second)) == (first == second)

    def test_moving_a_letter_between_labels_changes_the_key(self):
        assert derive_key(KEY, "ab", "c") != derive_key(KEY, "a", "bc")

    @pytest.mark.parametrize("root", [b"", bytes(31), bytes(33)])
    def test_a_root_of_the_wrong_length_is_refused(self, root):
        with pytest.raises(ValueError, match="32 bytes"):
            derive_key(root, "noise")

    def test_a_key_without_label_is_refused(self):
        with pytest.raises(ValueError, match="label"):
            derive_key(KEY)

    def test_simulation_root_is_a_function_of_the_seed(self):
        assert simulation_root(1) == simulation_root(1)
        assert len({simulation_root(seed) for seed in (0, 1, 2, 2**63 - 1)}) == 4

    @pytest.mark.parametrize("seed", [-1, 2**64])
    def test_a_seed_out_of_range_is_refused(self, seed):
        with pytest.raises(ValueError, match="seed"):
            simulation_root(seed)

    def test_fresh_roots_differ(self):
        assert len({fresh_root() for _ in range(8)}) == 8


class TestKeyStream:
    def test_three_blocks_equal_the_published_aes_256_vector(self):
        """McGrew and Viega, The Galois/Counter Mode, appendix B, test case 14: key 0, counters 0, 1, 2 (H, E(K, Y0), ciphertext of zeros)."""
        expected = "dc95c078a2408989ad48a21492842087530f8afbc74536b9a963b4f1c4cb738bcea7403d4d606b6e074ec5d3baf39d18"
        assert KeyedStream(bytes(32)).random_bytes(48).hex() == expected

    def test_first_block_equals_the_nist_key_vector(self):
        """NIST AESAVS, appendix C.3 (KeySbox, 256 bits), first row: encryption of the zero block."""
        key = bytes.fromhex("c47b0294dbbbee0fec4757f22ffeee3587ca4730c3d33b691df38bab076bc558")
        assert KeyedStream(key).random_bytes(16).hex() == "46f2fb342d6f0ab477476fc501242c5f"

    @given(st.lists(st.integers(0, 50), max_size=8))
    @settings(max_examples=50, deadline=None)
    def test_pieces_join_to_one_stream(self, sizes):
        stream = KeyedStream(KEY)
        assert b"".join(stream.random_bytes(n) for n in sizes) == KeyedStream(KEY).random_bytes(sum(sizes))

    def test_a_large_request_is_the_same_stream(self):
        whole, parts = KeyedStream(KEY).random_bytes(2**24 + 5), KeyedStream(KEY)
        assert whole == parts.random_bytes(2**23) + parts.random_bytes(2**23 + 5)

    def test_neither_repr_nor_copies_nor_attributes_give_the_key_away(self):
        stream = KeyedStream(KEY)
        shown = repr(stream) + repr(RoundStreams(sampling=stream, noise=stream))
        assert KEY.hex() not in shown
        assert str(KEY) not in shown
        assert not any(getattr(stream, name) == KEY for name in KeyedStream.__slots__)
        for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="copied"):
                duplicate(stream)

    @pytest.mark.parametrize("key", [b"", bytes(16), bytes(33)])
    def test_a_key_of_the_wrong_length_is_refused(self, key):
        with pytest.raises(ValueError, match="32 bytes"):
            KeyedStream(key)

    @pytest.mark.parametrize("call", [lambda s: s.random_bytes(-1), lambda s: s.gaussian(-1, 1.0), lambda s: s.bernoulli(-1, 0.5)])
    def test_a_negative_length_is_refused(self, call):
        with pytest.raises(ValueError, match="-"):
            call(KeyedStream(KEY))


class TestBernoulli:
    def test_compares_words_with_the_exact_rate(self):
        rate = 0.3
        words = KeyedStream(KEY).words(2000)
        expected = [Fraction(int(word), 2**64) < Fraction(rate) for word in words]
        assert KeyedStream(KEY).bernoulli(2000, rate).tolist() == expected

    def test_rate_one_takes_everybody_and_rate_zero_nobody(self):
        assert KeyedStream(KEY).bernoulli(1000, 1.0).all()
        assert not KeyedStream(KEY).bernoulli(1000, 0.0).any()

    @pytest.mark.parametrize("rate", [0.0, 1e-300, 0.5, math.nextafter(1.0, 0.0), 1.0])
    def test_uses_as_much_of_the_stream_at_every_rate(self, rate):
        stream, other = KeyedStream(KEY), KeyedStream(KEY)
        stream.bernoulli(10, rate)
        other.random_bytes(80)
        assert stream.random_bytes(16) == other.random_bytes(16)

    @pytest.mark.parametrize("rate", [0.01, 0.25, 0.9])
    def test_frequency_matches_the_rate(self, rate):
        """|z| < 4.9: one false alarm in a million."""
        hits = int(KeyedStream(KEY).bernoulli(N, rate).sum())
        assert abs(hits - N * rate) < 4.9 * math.sqrt(N * rate * (1 - rate))

    @pytest.mark.parametrize("rate", [-0.1, 1.0000001, math.nan, math.inf])
    def test_an_impossible_rate_is_refused(self, rate):
        with pytest.raises(ValueError, match="rate"):
            KeyedStream(KEY).bernoulli(3, rate)


class TestGaussian:
    def test_equals_box_muller_in_plain_python(self):
        words = [int(word) for word in KeyedStream(KEY).words(3 * 50)]
        expected = []
        for high, low, turn in zip(words[0::3], words[1::3], words[2::3], strict=True):
            uniform = Fraction(2 * (high * 2**64 + low) + 1, 2**129)
            radius, angle = math.sqrt(-2 * math.log(uniform)), 2 * math.pi * (turn >> 11) * 2.0**-53
            expected += [radius * math.cos(angle), radius * math.sin(angle)]
        np.testing.assert_allclose(KeyedStream(KEY).gaussian(100, 1.0), expected, rtol=1e-12, atol=1e-12)

    def test_first_values_are_fixed(self):
        """Pins the layout of the stream; made by this code, checked by the test above."""
        expected = [-0.02845439, -0.46546702, -0.52754099]
        stream = KeyedStream(KEY)
        stream.random_bytes(16)
        np.testing.assert_allclose(stream.gaussian(3, 1.0), expected, atol=1e-8)

    def test_pieces_of_even_length_join_and_blocks_do_not_show(self):
        n = 2 * 16384 + 40
        stream = KeyedStream(KEY)
        pieces = np.concatenate([stream.gaussian(k, 2.0) for k in (4, 16384 * 2, 36)])
        np.testing.assert_array_equal(pieces, KeyedStream(KEY).gaussian(n, 2.0))

    def test_an_odd_length_leaves_out_half_a_pair(self):
        np.testing.assert_array_equal(KeyedStream(KEY).gaussian(5, 1.0), KeyedStream(KEY).gaussian(6, 1.0)[:5])

    def test_moments_are_those_of_a_normal(self, sample):
        """Mean, variance, skewness and kurtosis within 4.9 standard errors: one false alarm in 250,000."""
        moments = [sample.mean(), (sample**2).mean() - 1, (sample**3).mean(), (sample**4).mean() - 3]
        errors = [1.0, math.sqrt(2), math.sqrt(15), math.sqrt(96)]
        for moment, error in zip(moments, errors, strict=True):
            assert abs(moment) < 4.9 * error / math.sqrt(N)

    def test_distribution_is_normal_by_kolmogorov_and_smirnov(self, sample):
        """p > 1e-4: one false alarm in ten thousand."""
        assert stats.kstest(sample, "norm").pvalue > 1e-4

    def test_tails_beyond_four_deviations_are_as_heavy_as_they_should_be(self, sample):
        """Expected 63 of a million; each limit of the Poisson interval leaves out 1e-5."""
        expected = 2 * stats.norm.sf(4) * N
        low, high = stats.poisson.ppf([1e-5, 1 - 1e-5], expected)
        assert low <= (np.abs(sample) > 4).sum() <= high
        assert (sample > 4).any()
        assert (sample < -4).any()

    def test_the_tail_has_no_holes_and_no_early_end(self):
        """Rare words: radii of neighbouring words differ by less than the release grid out to 8 deviations, and the end is at 13.4."""
        out = np.empty((3, 2))
        near_eight = np.uint64(round(2**64 * math.exp(-32)))
        streams._box_muller(np.array([[near_eight, 0, 0], [near_eight, 2**63, 0], [0, 0, 0]], dtype=np.uint64), out)
        assert out[0, 0] == pytest.approx(8.0, abs=1e-6)
        assert 0 < out[0, 0] - out[1, 0] < 2.0**-20
        assert out[2, 0] == pytest.approx(math.sqrt(2 * 129 * math.log(2)))

    def test_the_largest_words_give_zero_and_not_nan(self):
        out = np.empty((1, 2))
        streams._box_muller(np.full((1, 3), 2**64 - 1, dtype=np.uint64), out)
        assert out[0].tolist() == [0.0, 0.0]

    def test_the_two_values_of_a_pair_do_not_correlate(self, sample):
        """Plain and squared correlation of 500,000 pairs within 4.9 standard errors: one false alarm in 500,000."""
        a, b = sample[0::2], sample[1::2]
        for left, right in ((a, b), (a**2, b**2), (a[1:], b[:-1])):
            assert abs(np.corrcoef(left, right)[0, 1]) < 4.9 / math.sqrt(N / 2)

    def test_streams_of_different_labels_do_not_correlate(self):
        """15 pairs of streams, |r| < 5.4 / sqrt(n): one false alarm in a million."""
        n = 100_000
        labels = [("a",), ("b",), ("a", "b"), ("round-1", Domain.NOISE), ("round-1", Domain.SAMPLING), ("round-2", Domain.NOISE)]
        values = np.stack([KeyedStream(derive_key(KEY, *label)).gaussian(n, 1.0) for label in labels])
        correlation = np.corrcoef(values)
        np.fill_diagonal(correlation, 0)
        assert np.abs(correlation).max() < 5.4 / math.sqrt(n)

    def test_stddev_scales_and_zero_gives_zeros(self):
        np.testing.assert_array_equal(KeyedStream(KEY).gaussian(10, 3.0), 3.0 * KeyedStream(KEY).gaussian(10, 1.0))
        assert not KeyedStream(KEY).gaussian(10, 0.0).any()

    @pytest.mark.parametrize("stddev", [-1.0, math.nan, math.inf])
    def test_an_impossible_stddev_is_refused(self, stddev):
        with pytest.raises(ValueError, match="standard deviation"):
            KeyedStream(KEY).gaussian(3, stddev)


class TestRelease:
    @pytest.mark.parametrize("stddev", [0.003, 1.0, 1.3, 4096.0])
    @pytest.mark.parametrize("value", [0.0, 1 / 3, 1000.0])
    def test_released_values_lie_on_the_grid_whatever_is_under_them(self, value, stddev):
        """The sum of value and noise without rounding does not: its lowest bits tell 0 from 1000 (Mironov 2012)."""
        values = np.full(1000, value)
        released = KeyedStream(KEY).add_gaussian(values, stddev)
        steps = released / release_grid(stddev)
        assert (steps == np.rint(steps)).all()
        naive = (values + KeyedStream(KEY).gaussian(1000, stddev)) / release_grid(stddev)
        assert (naive != np.rint(naive)).any()
        assert np.abs(steps - naive).max() <= 0.5

    @pytest.mark.parametrize("value", [0.0, 1 / 3, 7.0, 1000.0])
    def test_the_lowest_bits_are_uniform_whatever_is_under_them(self, value):
        """Chi-square of the lowest 6 bits, p > 1e-5 for each value: one false alarm in 25,000."""
        released = KeyedStream(KEY).add_gaussian(np.full(200_000, value), 1.0)
        low_bits = np.mod(np.rint(released / release_grid(1.0)).astype(np.int64), 64)
        assert stats.chisquare(np.bincount(low_bits, minlength=64)).pvalue > 1e-5

    def test_the_grid_is_a_power_of_two_just_below_a_millionth_of_the_deviation(self):
        for stddev in (1e-6, 0.7, 1.0, 1.99, 2.0, 1e6):
            grid = release_grid(stddev)
            assert math.frexp(grid)[0] == 0.5
            assert stddev * 2.0**-21 < grid <= stddev * 2.0**-20

    def test_float32_holds_a_released_value_of_sixteen_deviations_exactly(self):
        released = np.clip(KeyedStream(KEY).add_gaussian(np.linspace(-10, 10, 5000), 1.0), -16, 16)
        np.testing.assert_array_equal(released.astype(np.float32), released)

    @pytest.mark.parametrize(
        ("values", "stddev"),
        [(np.zeros((2, 2)), 1.0), (np.array([math.nan]), 1.0), (np.array([math.inf]), 1.0), (np.zeros(2), 0.0), (np.zeros(2), math.nan)],
    )
    def test_what_cannot_be_released_is_refused(self, values, stddev):
        with pytest.raises(ValueError):
            KeyedStream(KEY).add_gaussian(values, stddev)


class TestRoundStreams:
    def test_the_same_context_gives_the_same_streams_and_another_gives_others(self):
        def first_bytes(*labels: str) -> tuple[bytes, bytes]:
            pair = RoundStreams.derive(KEY, *labels)
            return pair.sampling.random_bytes(16), pair.noise.random_bytes(16)

        assert first_bytes("client-1", "round-1") == first_bytes("client-1", "round-1")
        seen = [
            block
            for labels in (("client-1", "round-1"), ("client-1", "round-2"), ("client-2", "round-1"))
            for block in first_bytes(*labels)
        ]
        assert len(set(seen)) == 6


def test_examples_in_the_docstrings_hold():
    assert doctest.testmod(streams).failed == 0
