"""Epsilon is right: against the reference points, against Google's PLD, at the edges, and whatever a cache file says."""

import json
import logging
import math
import os
import subprocess
import sys

import pytest
from dp_accounting.pld import privacy_loss_distribution as pld
from hypothesis import given
from hypothesis import strategies as st

from fedsec.privacy import accounting, cache
from fedsec.privacy.accounting import NeighboringRelation, Segment, epsilon_prv, epsilon_rdp, known_bound, merge_segments

# (rate, sigma, steps) at delta = 1e-5 -> PRV / RDP / PLD. PRIVACY.md prints rates rounded: .0085 is 512/60000, .1365 is 8192/60000 and
# .0107 is 640/60000. The numbers belong to the exact rates.
REFERENCE = [
    (512 / 60000, 0.0085, 1.23, 4687, 2.373, 2.581, 2.363),
    (8192 / 60000, 0.1365, 4.05, 292, 2.440, 2.647, 2.430),
    (0.1, 0.1, 1.0, 50, 5.159, 5.881, 5.148),
    (1.0, 1.0, 10.0, 100, 4.387, 4.729, 4.377),
    (640 / 60000, 0.0107, 1.0, 940, 1.913, 2.182, 1.903),
]


def segment(sigma, rate, steps):
    return Segment(noise_multiplier=sigma, sample_rate=rate, steps=steps)


def google(parts, delta, interval=1e-4):
    whole = None
    for part in parts:
        one = pld.from_gaussian_mechanism(
            part.noise_multiplier, sampling_prob=part.sample_rate, value_discretization_interval=interval
        ).self_compose(part.steps)
        whole = one if whole is None else whole.compose(one)
    return whole.get_epsilon_for_delta(delta)


def forget():
    for function in (accounting._cached_prv, accounting._cached_rdp, accounting._quick):
        function.cache_clear()


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """A user's cache of its own, no shipped one, and nothing remembered in this process."""
    monkeypatch.setenv("FEDSEC_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "SHIPPED", tmp_path / "none.json")
    forget()
    yield tmp_path / cache.FILE_NAME
    forget()


@pytest.mark.parametrize(("exact", "printed", "sigma", "steps", "prv", "rdp", "google_pld"), REFERENCE)
def test_reference_points_of_the_design_hold_to_half_a_percent(exact, printed, sigma, steps, prv, rdp, google_pld):
    for rate, tolerance in ((exact, 1e-3), (printed, 5e-3)):
        spent = [segment(sigma, rate, steps)]
        assert epsilon_prv(spent, 1e-5) == pytest.approx(prv, rel=tolerance)
        assert epsilon_rdp(spent, 1e-5) == pytest.approx(rdp, rel=tolerance)
    assert google([segment(sigma, exact, steps)], 1e-5) == pytest.approx(google_pld, rel=1e-3)


@pytest.mark.parametrize(
    ("sigma", "rate", "steps", "delta"),
    [(1.5, 0.25, 60, 1e-3), (0.7, 0.02, 200, 1e-6), (5.0, 0.5, 30, 1e-4), (30.0, 0.25, 90, 1e-5), (2.0, 1.0, 5, 1e-5)],
)
def test_prv_is_an_upper_bound_within_one_percent_of_plds(sigma, rate, steps, delta):
    spent = [segment(sigma, rate, steps)]
    quick = accounting._quick(tuple(spent), delta)
    exact = google(spent, delta, interval=max(1e-5, min(1e-4, quick * 2e-4)))
    assert exact * (1 - 5e-4) <= epsilon_prv(spent, delta) <= exact * 1.0065


def test_mixed_segments_agree_with_plds_and_their_order_is_of_no_account():
    spent = [segment(1.2, 0.1, 40), segment(3.0, 0.5, 7)]
    assert epsilon_prv(spent, 1e-4) == pytest.approx(google(spent, 1e-4), rel=6e-3)
    assert epsilon_prv(spent[::-1], 1e-4) == epsilon_prv(spent, 1e-4)


def test_small_epsilon_is_not_drowned_by_the_accountants_error():
    spent = [segment(90.0, 0.5, 30)]
    exact = google(spent, 1e-4, interval=1e-5)
    assert exact == pytest.approx(0.073, rel=0.02)
    assert epsilon_prv(spent, 1e-4) == pytest.approx(exact, rel=6e-3)


def test_epsilon_grows_with_steps_and_rdp_lies_above_prv():
    numbers = [(epsilon_prv([segment(2.0, 0.25, steps)], 1e-3), epsilon_rdp([segment(2.0, 0.25, steps)], 1e-3)) for steps in (3, 6, 30, 60)]
    assert numbers == sorted(numbers)
    assert all(prv < rdp for prv, rdp in numbers)


@pytest.mark.parametrize("epsilon", [epsilon_prv, epsilon_rdp])
def test_edge_cases(epsilon):
    assert epsilon([], 1e-5) == 0.0
    assert epsilon([segment(1.0, 0.5, 0)], 1e-5) == 0.0
    assert epsilon([segment(0.0, 0.5, 0)], 1e-5) == 0.0
    assert epsilon([segment(0.0, 0.5, 1)], 1e-5) == math.inf
    assert epsilon([segment(9.0, 0.5, 10), segment(0.0, 0.5, 1)], 1e-5) == math.inf


def test_losses_too_large_for_prv_fall_back_to_the_rdp_bound():
    spent = [segment(0.1, 1.0, 10)]
    assert epsilon_prv(spent, 1e-5) == epsilon_rdp(spent, 1e-5)
    assert 500 < epsilon_prv(spent, 1e-5) < math.inf


@pytest.mark.parametrize("bad", [0.0, 1.0, -1e-5, math.nan, math.inf, True, "1e-5", None])
def test_an_impossible_delta_is_refused(bad):
    for epsilon in (epsilon_prv, epsilon_rdp):
        with pytest.raises(ValueError, match="delta"):
            epsilon([segment(1.0, 0.1, 1)], bad)


@pytest.mark.parametrize(
    ("sigma", "rate", "steps"),
    [
        (-1.0, 0.1, 1), (math.nan, 0.1, 1), (math.inf, 0.1, 1), ("1", 0.1, 1), (True, 0.1, 1),
        (1.0, 0.0, 1), (1.0, 1.1, 1), (1.0, -0.1, 1), (1.0, math.nan, 1), (1.0, None, 1),
        (1.0, 0.1, -1), (1.0, 0.1, 1.5), (1.0, 0.1, True), (1.0, 0.1, "3"),
    ],
)  # fmt: skip
def test_an_impossible_segment_is_refused(sigma, rate, steps):
    with pytest.raises(ValueError, match=r"steps|noise_multiplier|sample_rate"):
        segment(sigma, rate, steps)


@pytest.mark.parametrize("relation", ["replace-one", "", "ADD_REMOVE", "add_remove", None])
def test_an_unknown_relation_is_refused_never_translated(relation):
    for epsilon in (epsilon_prv, epsilon_rdp):
        with pytest.raises(ValueError, match="neighbouring relation"):
            epsilon([], 1e-5, relation=relation)
    assert epsilon_prv([], 1e-5, relation=NeighboringRelation.ADD_REMOVE) == 0.0


segments = st.builds(segment, st.sampled_from([0.0, 1.0, 2.5]), st.sampled_from([0.1, 1.0]), st.integers(0, 50))


@given(st.lists(segments, max_size=12), st.randoms())
def test_merging_keeps_every_step_once_in_any_order(spent, shuffler):
    merged = merge_segments(spent)
    shuffled = list(spent)
    shuffler.shuffle(shuffled)
    assert merge_segments(shuffled) == merged == merge_segments(merged)
    assert sum(part.steps for part in merged) == sum(part.steps for part in spent)
    assert len({(part.noise_multiplier, part.sample_rate) for part in merged}) == len(merged)


def test_a_bound_on_record_covers_fewer_steps_and_nothing_else(empty_cache):
    full = epsilon_prv([segment(2.0, 0.25, 60)], 1e-3)
    assert known_bound([segment(2.0, 0.25, 30)], 1e-3, limit=full) == full
    assert known_bound([segment(2.0, 0.25, 60)], 1e-3, limit=full) == full
    assert known_bound([segment(2.0, 0.25, 30)], 1e-3, limit=full * 0.999) is None
    assert known_bound([segment(2.0, 0.25, 61)], 1e-3, limit=full) is None
    assert known_bound([segment(1.9, 0.25, 30)], 1e-3, limit=full) is None
    assert known_bound([segment(2.0, 0.25, 30)], 1e-4, limit=full) is None
    assert known_bound([segment(2.0, 0.25, 1), segment(1.0, 0.25, 1)], 1e-3, limit=full) is None
    assert known_bound([segment(0.0, 0.25, 1)], 1e-3, limit=1e9) is None
    assert known_bound([], 1e-3, limit=1e-9) == 0.0


def weaken(path, factor):
    record = json.loads(path.read_text())
    for kind in ("prv", "rdp"):
        record["numbers"][kind] = {key: value * factor for key, value in record["numbers"][kind].items()}
    path.write_text(json.dumps(record))


@pytest.mark.parametrize("factor", [0.0, 0.5, 0.99, 3.0])
def test_an_edited_cache_cannot_change_epsilon(empty_cache, caplog, factor):
    spent = [segment(2.0, 0.25, 12)]
    right = epsilon_prv(spent, 1e-3), epsilon_rdp(spent, 1e-3)
    weaken(empty_cache, factor)
    forget()
    with caplog.at_level(logging.WARNING):
        assert known_bound(spent, 1e-3, limit=right[0] * 0.999) is None
        assert known_bound([segment(2.0, 0.25, 6)], 1e-3, limit=right[0] * 0.5) is None
        assert epsilon_prv(spent, 1e-3) == right[0]
        # RDP lies far above epsilon: what is left of it after a small cut is still a bound, and passes.
        assert epsilon_rdp(spent, 1e-3) == (right[1] * factor if factor == 0.99 else right[1])
    assert "not supported" in caplog.text


def test_a_prv_number_below_the_independent_estimate_is_not_believed(empty_cache, monkeypatch):
    spent = [segment(2.0, 0.25, 18)]
    monkeypatch.setattr(accounting, "_opacus_prv", lambda *_: 0.01)
    assert epsilon_prv(spent, 1e-3) == epsilon_rdp(spent, 1e-3)


def test_a_failing_opacus_leaves_the_rdp_bound(empty_cache, monkeypatch):
    from opacus.accountants import PRVAccountant

    def fail(*_args, **_kwargs):
        raise RuntimeError("Discrete mean differs significantly from continuous mean.")

    monkeypatch.setattr(PRVAccountant, "get_epsilon", fail)
    spent = [segment(2.0, 0.25, 24)]
    assert epsilon_prv(spent, 1e-3) == epsilon_rdp(spent, 1e-3) > 0


def test_a_number_on_record_needs_neither_torch_nor_opacus(empty_cache):
    spent = [segment(2.0, 0.25, 12)]
    expected = epsilon_prv(spent, 1e-3), epsilon_rdp(spent, 1e-3)
    code = (
        "import sys; from fedsec.privacy.accounting import *; spent = [Segment(noise_multiplier=2.0, sample_rate=0.25, steps=12)];"
        "print(repr((epsilon_prv(spent, 1e-3), epsilon_rdp(spent, 1e-3), known_bound(spent, 1e-3, limit=9.0))));"
        "print({'torch', 'opacus', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "FEDSEC_CACHE": str(empty_cache.parent)},
    )
    assert done.stdout.splitlines() == [repr((*expected, expected[0])), "set()"]
