"""Evidence adds up, quarantine is rare for the honest, bounded for everybody and long for who comes back to it; proof excludes at once."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.codec import canonical_json, decode_canonical_json
from fedsec.errors import DecodeError
from fedsec.robust.base import Verdict
from fedsec.robust.false_alarms import quarantine_probability
from fedsec.robust.reputation import Reputation
from fedsec.robust.reputation_records import ClientRecord, Fault, ReputationSettings, RoundObservation, Standing

OVER, UNDER = 1.0, 0.99
SETTINGS = ReputationSettings(num_byzantine=2)
NAMES = ("ada", "bob", "cyd", "dan", "eve", "fay")


def start(**changes):
    return Reputation.initial(replace(SETTINGS, **changes))


def go(reputation, *rounds, suspicions=None, faults=None):
    """Observe rounds, each a dict of scores; the reputation after them and all events."""
    events = []
    for scores in rounds:
        seen = RoundObservation(server_round=reputation.server_round + 1, scores=scores, suspicions=suspicions or {}, faults=faults or {})
        reputation, new = reputation.observe(seen)
        events += new
    return reputation, events


# --- How fast, and how rarely -----------------------------------------------------------------------------------------------------


def test_who_is_rejected_every_round_is_quarantined_after_the_fifth_and_not_before():
    reputation, events = go(start(), *[{"eve": OVER, "ada": UNDER}] * 4)
    assert reputation.blocked() == frozenset()
    assert not events
    reputation, (event,) = go(reputation, {"eve": OVER, "ada": UNDER})
    assert reputation.blocked() == reputation.quarantined() == {"eve"}
    assert (event.client_id, event.server_round, event.standing) == ("eve", 5, Standing.QUARANTINED)
    assert event.what == "quarantined for 5 clean rounds: over the edge in 5 and suspect in 0 of 5 rounds"


@pytest.mark.parametrize(("rejected", "clean", "expected"), [(1, 1, 13), (2, 2, 13), (5, 5, 5), (3, 4, 16), (1, 2, 37)])
def test_who_is_rejected_on_and_off_is_quarantined_too(rejected, clean, expected):
    pattern = ([{"eve": OVER}] * rejected + [{"eve": UNDER}] * clean) * 20
    _, events = go(start(), *pattern)
    assert events[0].server_round == expected


def test_who_is_rejected_in_one_round_of_four_gathers_no_evidence():
    reputation, events = go(start(), *([{"eve": OVER}] + [{"eve": UNDER}] * 3) * 50)
    assert not events
    assert reputation.status("eve").evidence == 0
    assert reputation.status("eve").rejections == 50


def test_one_enormous_score_is_one_rejection():
    reputation, _ = go(start(), {"eve": math.inf}, {"ada": 1e300})
    assert reputation.status("eve").evidence == reputation.status("ada").evidence == SETTINGS.rejected_points


@pytest.mark.parametrize(("rate", "seed"), [(0.02, 1), (0.08, 2), (0.18, 3), (0.5, 4)])
def test_simulated_runs_are_quarantined_as_often_as_computed(rate, seed):
    """1000 clients with a place for each are 1000 independent runs of 50 rounds."""
    runs, rounds = 1000, 50
    rng = np.random.default_rng(seed)
    reputation = start(num_byzantine=runs)
    for number in range(1, rounds + 1):
        scores = dict(zip(map(str, range(runs)), np.where(rng.random(runs) < rate, OVER, UNDER).tolist(), strict=True))
        reputation, _ = reputation.observe(RoundObservation(server_round=number, scores=scores))
    found = sum(record.offences > 0 for record in reputation.clients.values())
    expected = quarantine_probability(rate, rounds, SETTINGS)
    assert abs(found - runs * expected) <= 4 * math.sqrt(runs * expected * (1 - expected)) + 1
    if rate <= 0.02:
        assert found == 0
    if rate == 0.5:
        assert found > 0.99 * runs


# --- Return ------------------------------------------------------------------------------------------------------------------------


def offender(offences=1, **changes):
    """A reputation whose eve is just in quarantine for so many-th time."""
    reputation, _ = go(start(**changes), *[{"eve": OVER}] * 5)
    for _ in range(offences - 1):
        reputation, _ = go(reputation, *[{"eve": UNDER}] * reputation.status("eve").term, *[{"eve": OVER}] * 3)
        assert reputation.status("eve").standing is Standing.QUARANTINED
    return reputation


def test_clean_rounds_lead_back_over_probation():
    reputation, events = go(offender(), *[{"eve": UNDER}] * 5)
    assert [(event.server_round, event.standing) for event in events] == [(10, Standing.PROBATION)]
    assert reputation.blocked() == frozenset()
    reputation, events = go(reputation, *[{"eve": UNDER}] * 7)
    assert [(event.server_round, event.standing) for event in events] == [(17, Standing.TRUSTED)]
    assert reputation.status("eve").offences == 1


def test_rounds_that_speak_against_a_client_and_rounds_without_it_do_not_count_as_served():
    reputation, _ = go(offender(), *[{"eve": UNDER}] * 4, *[{"eve": OVER}] * 10, *[{"ada": UNDER}] * 10)
    assert (reputation.status("eve").standing, reputation.status("eve").served) == (Standing.QUARANTINED, 4)
    suspect, _ = go(reputation, {"eve": UNDER}, suspicions={"eve": OVER})
    assert suspect.status("eve").served == 4
    reputation, _ = go(reputation, {"eve": UNDER})
    assert reputation.status("eve").standing is Standing.PROBATION


def test_on_probation_three_rejections_are_enough_and_two_are_not():
    reputation, _ = go(offender(), *[{"eve": UNDER}] * 5, *[{"eve": OVER}] * 2)
    assert reputation.status("eve").standing is Standing.PROBATION
    reputation, _ = go(reputation, {"eve": OVER})
    assert reputation.status("eve").standing is Standing.QUARANTINED


def test_each_quarantine_takes_twice_as_long_up_to_the_limit():
    assert [offender(number).status("eve").term for number in (1, 2, 3, 4, 5, 6)] == [5, 10, 20, 40, 40, 40]
    assert replace(SETTINGS, longest_factor=3).term(10**6) == 15


# --- Places ------------------------------------------------------------------------------------------------------------------------


def test_most_evidence_goes_first_then_most_rejections_then_the_lower_name():
    ahead, _ = go(start(), {"eve": OVER, "fay": UNDER}, *[{"eve": UNDER}] * 3)  # eve was rejected once before, and it is forgiven
    every = dict.fromkeys(NAMES, OVER)
    reputation, _ = go(ahead, *[every] * 5)
    assert reputation.quarantined() == {"eve", "ada"}
    turned, _ = go(start(num_byzantine=1), *[dict.fromkeys(reversed(NAMES), OVER)] * 5)
    assert turned.quarantined() == {"ada"}
    worst, _ = go(start(num_byzantine=1), {"fay": OVER}, *[every] * 5)
    assert worst.quarantined() == {"fay"}


def test_more_evidence_goes_before_more_rejections():
    reputation, _ = go(start(num_byzantine=1), *[{"ada": OVER}] * 2, *[{"ada": UNDER}] * 6, *[{"bob": OVER}] * 5)
    reputation, _ = go(reputation, {"eve": OVER}, *[{"ada": OVER, "eve": OVER}] * 5)
    ada, eve = reputation.status("ada"), reputation.status("eve")
    assert (ada.rejections, ada.evidence, eve.rejections, eve.evidence) == (7, 15, 6, 18)
    reputation, _ = go(reputation, {"ada": OVER, "eve": OVER}, faults={"bob": Fault(reason="lied")})
    assert reputation.quarantined() == {"eve"}


def test_who_waits_goes_in_when_a_place_is_free():
    every = dict.fromkeys(("ada", "bob", "cyd"), OVER)
    reputation, _ = go(start(), *[every] * 5)
    assert reputation.quarantined() == {"ada", "bob"}
    reputation, _ = go(reputation, *[{"ada": UNDER, "bob": OVER, "cyd": OVER}] * 5)
    assert reputation.quarantined() == {"bob", "cyd"}
    freed, _ = go(reputation, {"ada": UNDER}, faults={"bob": Fault(reason="not finite")})
    assert freed.quarantined() == {"cyd"}


def test_evidence_of_who_waits_is_limited_so_that_good_behaviour_can_work_it_off():
    reputation, _ = go(start(num_byzantine=0), *[{"eve": OVER}] * 100)
    assert reputation.status("eve").evidence == SETTINGS.most_evidence
    assert reputation.blocked() == frozenset()


def test_who_is_absent_takes_no_place():
    reputation, _ = go(start(num_byzantine=1), *[{"ada": OVER, "bob": OVER, "cyd": OVER}] * 5)
    reputation, _ = go(reputation, *[{"ada": UNDER, "cyd": UNDER}] * 5)  # bob has as much evidence, and is away
    assert reputation.quarantined() == frozenset()
    reputation, _ = go(reputation, {"bob": OVER})
    assert reputation.quarantined() == {"bob"}


# --- Suspicion and proof -----------------------------------------------------------------------------------------------------------


def test_suspicion_over_rounds_leads_to_quarantine_slower_and_never_to_more():
    reputation, events = go(start(), *[{"eve": UNDER}] * 7, suspicions={"eve": OVER, "ada": OVER})
    assert not events
    reputation, events = go(reputation, *[{"eve": UNDER}] * 500, suspicions={"eve": OVER, "ada": OVER})
    assert [(event.server_round, event.standing) for event in events] == [(8, Standing.QUARANTINED)]
    assert reputation.status("ada") == ClientRecord()  # never judged: no evidence
    assert reputation.excluded() == {}


def test_rejection_and_suspicion_in_one_round_count_once():
    reputation, _ = go(start(), {"eve": OVER}, suspicions={"eve": OVER})
    record = reputation.status("eve")
    assert (record.evidence, record.rejections, record.suspicions) == (SETTINGS.rejected_points, 1, 0)


def test_suspicion_under_its_edge_is_none():
    reputation, _ = go(start(), *[{"eve": UNDER}] * 50, suspicions={"eve": UNDER})
    assert reputation.status("eve").evidence == 0


def test_proof_excludes_at_once_for_good_and_the_first_one_stays_on_record():
    first, second = Fault(reason="3 entries are not finite", evidence="evidence/eve.json"), Fault(reason="again")
    reputation, (event,) = go(start(), {"ada": UNDER}, faults={"eve": first})
    assert (event.standing, event.what, event.evidence_at) == (
        Standing.EXCLUDED,
        "excluded, proven fault: 3 entries are not finite",
        "evidence/eve.json",
    )
    reputation, events = go(reputation, *[{"eve": UNDER, "ada": UNDER}] * 200, faults={"eve": second})
    assert not events
    assert reputation.blocked() == {"eve"}
    assert reputation.excluded() == {"eve": first}
    assert reputation.quarantined() == frozenset()


def test_exclusion_is_not_limited_by_the_number_of_places():
    reputation, _ = go(start(num_byzantine=0), {}, faults={name: Fault(reason="lied") for name in NAMES})
    assert list(reputation.excluded()) == sorted(NAMES)


def test_without_judging_over_rounds_only_proof_counts():
    reputation, events = go(start(over_rounds=False), *[{"eve": OVER}] * 50, faults={"ada": Fault(reason="lied")})
    assert reputation.blocked() == {"ada"}
    assert [event.client_id for event in events] == ["ada"]


# --- Whatever happens --------------------------------------------------------------------------------------------------------------

scores = st.dictionaries(st.sampled_from(NAMES), st.sampled_from([UNDER, OVER, OVER, 7.0]), max_size=len(NAMES))
faults = (
    st.just({})
    | st.just({})
    | st.just({})
    | st.dictionaries(st.sampled_from(NAMES), st.builds(Fault, reason=st.text(max_size=5)), max_size=1)
)
histories = st.lists(st.tuples(scores, scores, faults), max_size=60)


def replay(history, reputation):
    for scores_now, suspicions, faults_now in history:
        seen = RoundObservation(server_round=reputation.server_round + 1, scores=scores_now, suspicions=suspicions, faults=faults_now)
        before, (reputation, events) = reputation, reputation.observe(seen)
        yield seen, before, reputation, events


@settings(max_examples=60, deadline=None)
@given(history=histories, places=st.integers(0, 3))
def test_whatever_happens(history, places):
    for seen, before, after, events in replay(history, start(num_byzantine=places)):
        assert len(after.quarantined()) <= places
        assert after.blocked() == after.quarantined() | after.excluded().keys()
        assert before.excluded().items() <= after.excluded().items()
        for name, record in after.clients.items():
            if name not in seen.scores and name not in seen.faults:
                assert record == before.status(name)
            if record.offences:
                assert record.rejections + record.suspicions >= 5
            if before.status(name).standing is Standing.EXCLUDED:
                assert record == before.status(name)
            if record.standing is Standing.EXCLUDED:
                assert name in seen.faults or name in before.excluded()
        changed = {name for name in after.clients if after.status(name).standing is not before.status(name).standing}
        assert {event.client_id for event in events} == changed


@settings(max_examples=30, deadline=None)
@given(history=histories, places=st.integers(0, 3), cut=st.integers(0, 60))
def test_a_resumed_run_goes_on_bit_for_bit(history, places, cut):
    straight = [step[2] for step in replay(history, start(num_byzantine=places))]
    first = [start(num_byzantine=places), *(step[2] for step in replay(history[:cut], start(num_byzantine=places)))][-1]
    stored = canonical_json(first.to_json())
    again = Reputation.from_json(decode_canonical_json(stored))
    assert again == first
    assert canonical_json(again.to_json()) == stored
    assert [step[2] for step in replay(history[cut:], again)] == straight[cut:]


@settings(max_examples=30, deadline=None)
@given(history=histories)
def test_the_order_in_which_clients_are_told_of_does_not_matter(history):
    turned = [tuple(dict(reversed(part.items())) for part in step) for step in history]
    one, other = ([(step[2], step[3]) for step in replay(way, start())] for way in (history, turned))
    assert one == other


# --- What is refused ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2])
def test_rounds_go_up(number):
    reputation, _ = go(start(), {}, {})
    with pytest.raises(ValueError, match="after round 2"):
        reputation.observe(RoundObservation(server_round=number))


@pytest.mark.parametrize("changes", [{"server_round": 0}, {"scores": {"eve": math.nan}}, {"suspicions": {"eve": math.nan}}])
def test_observations_are_checked(changes):
    with pytest.raises(ValueError):
        RoundObservation(**({"server_round": 1} | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_byzantine": -1},
        {"quarantine_rounds": 0},
        {"longest_factor": 0},
        {"suspected_points": 0},
        {"suspected_points": 4},
        {"rejected_points": 4},
        {"threshold": 14},
    ],
)
def test_settings_that_would_ban_on_less_than_five_rounds_or_make_no_sense_are_refused(changes):
    with pytest.raises(ValueError):
        replace(SETTINGS, **changes)


def test_observation_of_a_verdict_has_its_scores():
    verdict = Verdict(accepted=np.array([True, False]), scores=np.array([0.5, 2.0]))
    seen = RoundObservation.from_verdict(3, ("ada", "eve"), verdict, suspicions={"ada": 2.0}, faults={"fay": Fault(reason="lied")})
    assert (seen.scores, seen.suspicions, list(seen.faults), seen.server_round) == ({"ada": 0.5, "eve": 2.0}, {"ada": 2.0}, ["fay"], 3)
    with pytest.raises(ValueError):
        RoundObservation.from_verdict(3, ("ada",), verdict)


CORRUPTIONS = [
    (("format",), "fedsec/reputation/v0"),
    (("format",), ...),
    (("more",), 1),
    (("server_round",), 5.0),
    (("server_round",), 4),
    (("settings", "num_byzantine"), 0),
    (("settings", "threshold"), 3),
    (("settings", "threshold"), "15"),
    (("settings", "over_rounds"), 1),
    (("clients", "eve", "standing"), "banned"),
    (("clients", "eve", "standing"), "trusted"),
    (("clients", "eve", "standing"), 3),
    (("clients", "eve", "term"), 0),
    (("clients", "eve", "served"), 5),
    (("clients", "eve", "evidence"), 31),
    (("clients", "eve", "evidence"), -1),
    (("clients", "eve", "rejections"), 6),
    (("clients", "eve", "since"), 0),
    (("clients", "eve", "offences"), 0),
    (("clients", "eve", "reason"), None),
    (("clients", "eve", "unknown"), 1),
    (("clients", "ada", "rounds"), True),
    (("clients",), []),
]


@pytest.mark.parametrize(("path", "value"), CORRUPTIONS, ids=str)
def test_what_contradicts_itself_or_is_not_of_the_format_is_refused(path, value):
    reputation, _ = go(start(), *[{"eve": OVER, "ada": UNDER}] * 5)
    written = json.loads(json.dumps(reputation.to_json()))
    place = written
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    with pytest.raises(DecodeError):
        Reputation.from_json(written)


@pytest.mark.parametrize("value", [None, [], "reputation", 3])
def test_what_is_no_object_is_refused(value):
    with pytest.raises(DecodeError):
        Reputation.from_json(value)
