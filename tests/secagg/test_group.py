"""Groups: cohorts of one attempt share one R; one that fails drops out, and alone is tried again."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedsec.errors import LocalProtocolError, PeerError
from fedsec.secagg.config import nonce_commitment
from fedsec.secagg.group import accept_all
from fedsec.secagg.labels import Phase
from fedsec.secagg.messages import SketchRequest


def two(rounds: Any, **kwargs: Any) -> Any:
    cohorts = rounds.cohorts_of_a_group(2, num_clients=4, **kwargs)
    return cohorts, rounds.group(cohorts)


def test_two_cohorts_open_two_sums_under_one_matrix(rounds: Any) -> None:
    cohorts, servers = two(rounds)
    rounds.run_group(cohorts, servers)
    assert servers.failed == {}
    for fed in cohorts:
        assert np.array_equal(fed.open().total, fed.expected(range(4)))
    assert len({fed.server.matrix_seed for fed in cohorts}) == 1
    assert cohorts[0].server.cohort_roots == cohorts[1].server.cohort_roots
    assert len({*cohorts[0].server.cohort_roots}) == 2
    assert cohorts[0].server.view != cohorts[1].server.view


def test_one_changed_upload_anywhere_is_another_matrix_everywhere(rounds: Any) -> None:
    seeds = set()
    for name in ("one", "two"):
        cohorts, servers = two(rounds)
        cohorts[1].name = name
        rounds.run_group(cohorts, servers, Phase.SKETCH)
        seeds |= {fed.server.matrix_seed for fed in cohorts}
    assert len(seeds) == 2


@pytest.mark.parametrize("phase", [Phase.ADVERTISE_KEYS, Phase.SHARE_KEYS, Phase.MASKED_INPUT])
def test_a_cohort_that_fails_before_its_uploads_are_fixed_stands_as_zeros_and_the_other_goes_on(rounds: Any, phase: Phase) -> None:
    cohorts, servers = two(rounds)
    rounds.run_group(cohorts, servers, absent={phase: [(0, 1), (0, 2)]})
    assert list(servers.failed) == [0]
    assert "of 4 members" in servers.failed[0]
    assert cohorts[0].server.phase is Phase.ABORTED
    assert cohorts[1].server.cohort_roots[0] == bytes(32)
    assert np.array_equal(cohorts[1].open().total, cohorts[1].expected(range(4)))


@pytest.mark.parametrize("phase", [Phase.SKETCH, Phase.CONSISTENCY_CHECK])
def test_a_cohort_that_fails_later_keeps_its_root_and_the_other_goes_on(rounds: Any, phase: Phase) -> None:
    cohorts, servers = two(rounds)
    rounds.run_group(cohorts, servers, absent={phase: [(1, 1), (1, 2)]})
    assert list(servers.failed) == [1]
    assert cohorts[1].server.released == {}
    assert cohorts[0].server.cohort_roots[1] != bytes(32)
    assert np.array_equal(cohorts[0].open().total, cohorts[0].expected(range(4)))


def test_when_all_cohorts_fail_nothing_is_running_and_nothing_opens(rounds: Any) -> None:
    cohorts, servers = two(rounds)
    rounds.run_group(cohorts, servers, absent={Phase.SHARE_KEYS: [(0, 1), (0, 2), (1, 0), (1, 1)]})
    assert (sorted(servers.failed), servers.running()) == ([0, 1], {})
    servers.close_phase()
    servers.open_nonce()
    servers.decide()
    assert all(fed.server.phase is Phase.ABORTED for fed in cohorts)


def test_the_nonce_waits_for_the_slowest_cohort(rounds: Any) -> None:
    cohorts, servers = two(rounds)
    rounds.run_group(cohorts, servers, Phase.MASKED_INPUT)
    for index in range(4):
        cohorts[0]._ask()
        cohorts[0].answer(index)
        cohorts[0].deliver(index, cohorts[0].messages[Phase.MASKED_INPUT][index])
    cohorts[0].server.close()
    with pytest.raises(LocalProtocolError, match="all uploads are fixed"):
        servers.open_nonce()
    assert cohorts[0].server.view == b""
    servers.fail(1, "too slow")
    servers.open_nonce()
    assert cohorts[0].server.cohort_roots[1] == bytes(32)


def sketched(rounds: Any) -> Any:
    cohorts, servers = two(rounds)
    rounds.run_group(cohorts, servers, Phase.SKETCH)
    for fed in cohorts:
        fed._ask()
        for index in range(4):
            fed.answer(index)
            fed.deliver(index, fed.messages[Phase.SKETCH][index])
    return cohorts, servers


def test_the_rule_sees_all_sketches_at_once_and_its_choice_is_cut_by_cohort(rounds: Any) -> None:
    cohorts, servers = sketched(rounds)
    seen: list[Any] = []

    def rule(sketches: Any) -> Any:
        seen.append(sorted(sketches))
        return [place for place in sketches if place not in {(0, 1), (1, 3)}]

    servers.decide(rule)
    assert seen == [[(cohort, index) for cohort in range(2) for index in range(4)]]
    assert [fed.server.accepted for fed in cohorts] == [(0, 2, 3), (0, 1, 2)]
    assert sorted(accept_all({(0, 1): np.zeros(8, dtype=np.int32)})) == [(0, 1)]


def test_a_rule_that_leaves_too_few_in_a_cohort_ends_that_cohort_only(rounds: Any) -> None:
    cohorts, servers = sketched(rounds)
    servers.decide(lambda sketches: [place for place in sketches if place[0] == 1 or place[1] < 2])
    assert list(servers.failed) == [0]
    assert cohorts[1].server.accepted == (0, 1, 2, 3)


def test_a_rule_that_accepts_whom_it_did_not_see_is_our_bug(rounds: Any) -> None:
    cohorts, servers = sketched(rounds)
    for place in ((0, 4), (2, 0), (0, -1)):
        with pytest.raises(LocalProtocolError, match="did not see"):
            servers.decide(lambda sketches, place=place: [*sketches, place])
    assert {fed.server.phase for fed in cohorts} == {Phase.SKETCH}


def test_a_retry_holds_the_failed_cohort_only_and_opens_the_stored_input_under_a_new_matrix(rounds: Any) -> None:
    cohorts, servers = two(rounds)
    rounds.run_group(cohorts, servers, absent={Phase.MASKED_INPUT: [(0, 1), (0, 2)]})
    nonce = rounds.expand("second nonce", 32)
    again = rounds.Federation(name="second attempt", num_clients=4, cohort=0, num_cohorts=2, attempt=2, nonce=nonce)
    assert again.config.retry_digest() == cohorts[0].config.retry_digest()
    assert again.config.nonce_commitment == nonce_commitment(nonce) != cohorts[0].config.nonce_commitment
    again.encoded = cohorts[0].encoded
    retry = rounds.group([again])
    rounds.run_group([again], retry)
    assert again.server.cohort_roots[1] == bytes(32)
    assert again.server.matrix_seed != cohorts[1].server.matrix_seed
    assert np.array_equal(again.open().total, cohorts[0].expected(range(4)))


def test_a_client_refuses_the_nonce_of_the_first_attempt_in_the_second(rounds: Any) -> None:
    cohorts, servers = two(rounds)
    rounds.run_group(cohorts, servers, Phase.SKETCH, absent={Phase.MASKED_INPUT: [(0, 1), (0, 2)]})
    again = rounds.Federation(
        name="second attempt", num_clients=4, cohort=0, num_cohorts=2, attempt=2, nonce=rounds.expand("second nonce", 32)
    )
    retry = rounds.group([again])
    rounds.run_group([again], retry, Phase.SKETCH)
    again._ask()
    request = SketchRequest.decode(again.requests[Phase.SKETCH][1])
    with pytest.raises(PeerError, match="commits"):
        again.step(Phase.SKETCH, 1, replace(request, nonce=cohorts[1].nonce).encode())


def test_cohorts_with_different_nonces_are_no_group_for_a_client(rounds: Any) -> None:
    """The machine opens one nonce; a cohort that was promised another stops here, before any sketch."""
    cohorts, servers = two(rounds)
    other = rounds.Federation(name="other", num_clients=4, cohort=1, num_cohorts=2, nonce=bytes(32))
    servers.cohorts = {0: cohorts[0].server, 1: other.server}
    rounds.run_group([cohorts[0], other], servers, Phase.MASKED_INPUT)
    for fed in (cohorts[0], other):
        fed._ask()
        for index in range(4):
            fed.answer(index)
            fed.deliver(index, fed.messages[Phase.MASKED_INPUT][index])
    servers.close_phase()
    with pytest.raises(LocalProtocolError, match="commits"):
        servers.open_nonce()


def test_the_text_of_a_group_hides_its_nonce(rounds: Any) -> None:
    _, servers = two(rounds)
    assert repr(servers.nonce)[2:-1] not in repr(servers)
