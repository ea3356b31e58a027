"""Lies under secure aggregation, told to the real machines of client and server: what each comes to."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from fedsec.secagg.labels import Phase
from fedsec.secagg.opening import OpeningFailed, open_round
from fedsec.sim.attacks.catalogue import CATALOGUE, Family
from fedsec.sim.attacks.protocol import SILENT_FROM, Lie, extra, tamper

NAMES = sorted(name for name, info in CATALOGUE.items() if info.family is Family.PROTOCOL)
LIARS = (1, 4)


def _load_hostile():
    name = "fedsec_tests_secagg_hostile"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[2] / "secagg" / "hostile.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


hostile = _load_hostile()


def lie_of(fed, name, place, *, liars=LIARS, server_round=1):
    index = liars[place]
    poison = fed.config.fixed_point.encode(-5 * fed.updates[index], fed.draw("rounding", index, 4 * fed.config.dimension))
    return Lie(
        name=name, honest=fed.encoded[index], poison=poison, place=place, num_attackers=len(liars), server_round=server_round, seed=3,
        signer=fed.signers[index],
    )  # fmt: skip


def step(fed, lies):
    """One phase in which some lie: True to what a client app would do, the lie is stored before it is sent."""
    hostile.answer_all(fed)
    phase = fed.server.phase
    for index, lie in lies.items():
        said = tamper(lie, phase, fed.states[index], fed.messages[phase][index])
        if said is None:
            del fed.messages[phase][index]
        else:
            fed.store(index, said[0])
            fed.messages[phase][index] = said[1]
    return hostile.deliver_all(fed)


def lying_round(name, *, liars=LIARS, num_clients=9, accept=None, server_round=1, until=Phase.DONE):
    fed = hostile.Federation(num_clients=num_clients, num_corrupt=len(liars), name=f"{name}/{server_round}")
    lies = {index: lie_of(fed, name, place, liars=liars, server_round=server_round) for place, index in enumerate(liars)}
    fed.run(Phase.MASKED_INPUT)
    while fed.server.phase is not until:
        phase = fed.server.phase
        assert not step(fed, lies)  # the server refuses no message: a lie is not malformed
        fed.advance(accept=accept if phase is Phase.SKETCH else None)
    return fed, lies


def blamed(fed, *, silent=()):
    secrets = hostile.secrets_of(fed)
    with pytest.raises(OpeningFailed):
        open_round(fed.server, secrets)
    _, outcome = hostile.blame(fed, secrets, silent=silent)
    hostile.check_named(fed, outcome.named, LIARS)
    return outcome


@pytest.mark.parametrize("name", ["sketch-lie", "wrong-mask"])
@pytest.mark.parametrize("liars", [(1,), LIARS])
def test_liars_are_caught_by_the_opening_check_and_named(name, liars):
    fed, _ = lying_round(name, liars=liars)
    outcome = blamed(fed)
    assert {one.index for one in outcome.named} == set(liars)
    assert not outcome.silent
    assert not outcome.unresolved


def test_a_lie_that_is_rejected_beforehand_does_no_harm():
    fed, _ = lying_round("sketch-lie", accept=[0, 2, 3, 5, 6, 7, 8])
    assert np.array_equal(fed.open().total, fed.expected([0, 2, 3, 5, 6, 7, 8]))


def test_a_lie_modulo_the_ring_ends_at_the_norm_gate():
    fed, lies = lying_round("sketch-lie-mod", until=Phase.SKETCH)
    assert not step(fed, lies)
    passed = sorted(fed.server.screen())
    assert passed == [0, 2, 3, 5, 6, 7, 8]
    fed.advance()
    assert np.array_equal(fed.finish().total, fed.expected(passed))


def test_a_sketch_modulo_the_ring_would_have_passed_a_check_modulo_the_ring():
    """The claim of ``sketch-lie-mod`` is congruent to R times what was uploaded, and differs over the integers."""
    fed, lies = lying_round("sketch-lie-mod", until=Phase.SKETCH)
    step(fed, lies)
    matrix = hostile.matrix_of(fed)
    _, attachment = hostile.said(fed, Phase.SKETCH, 1, hostile.SketchStatement)
    shown = np.frombuffer(hostile.SketchOpening.decode(attachment).sketch, dtype="<i4").astype(np.int64)
    uploaded = fed.encoded[1] + extra(lies[1])
    true = matrix.product(uploaded)
    assert np.array_equal(shown % (1 << 32), true % (1 << 32))
    assert np.any(shown != true)


def test_two_lies_that_cancel_do_nothing_while_both_are_in():
    fed, _ = lying_round("cancelling-pair")
    assert np.array_equal(fed.open().total, fed.expected(range(9)))


def test_a_pair_of_which_one_is_left_out_is_a_lie_and_its_teller_is_named():
    fed, _ = lying_round("cancelling-pair", accept=[0, 1, 2, 3, 5, 6, 7, 8])
    assert {one.index for one in blamed(fed).named} == {1}


def test_the_odd_one_out_of_cancelling_pairs_is_honest():
    fed, _ = lying_round("cancelling-pair", liars=(1,))
    assert np.array_equal(fed.open().total, fed.expected(range(9)))


@pytest.mark.parametrize("server_round", [1, 2, 3, 4])
def test_who_lies_and_then_falls_silent_is_not_in_a_sum(server_round):
    fed, lies = lying_round("silence", server_round=server_round)
    assert lies[1].silent_from is SILENT_FROM[server_round - 1]
    said_shares = {index for index in LIARS if index in fed.messages[Phase.UNMASK]}
    assert said_shares == (set(LIARS) if server_round > 2 else set())
    outcome = blamed(fed, silent=[index for index in LIARS if tamper(lies[index], Phase.BLAME, fed.states[index], b"") is None])
    if server_round < 4:
        assert set(outcome.silent) == set(LIARS)
    else:  # what they told of their edges was true: that is proof enough
        assert {one.index for one in outcome.named} == set(LIARS)


@pytest.mark.parametrize("name", NAMES)
def test_a_lie_is_the_same_whenever_it_is_told(name):
    fed = hostile.Federation(num_clients=9, num_corrupt=2, name="again")
    one, other = (extra(lie_of(fed, name, 0)) for _ in range(2))
    assert np.array_equal(one, other)
    assert one.any()
    if name in ("wrong-mask", "sketch-lie-mod", "cancelling-pair"):
        assert not np.array_equal(one, extra(lie_of(fed, name, 0, server_round=2)))
    assert np.array_equal(extra(lie_of(fed, "cancelling-pair", 0)), -extra(lie_of(fed, "cancelling-pair", 1)))


def test_other_attacks_tell_no_lies():
    fed = hostile.Federation(num_clients=9, num_corrupt=2, name="none")
    with pytest.raises(ValueError, match="alie"):
        extra(lie_of(fed, "alie", 0))
