"""The server of a cohort: what it takes, what it refuses without a trace, and when it gives a round up."""

import dataclasses
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsec.errors import LocalProtocolError, PeerError, RoundAborted
from fedsec.merkle import merkle_root
from fedsec.secagg.cohorts import CohortLimits
from fedsec.secagg.dealing import leaf_hashes
from fedsec.secagg.labels import Phase
from fedsec.secagg.messages import (
    Advert,
    Consent,
    Dealing,
    DealtLeaf,
    DealtLeaves,
    Envelope,
    Input,
    MaskedInputRequest,
    RemovedEdge,
    Shares,
    SketchOpening,
    SketchRequest,
    SketchStatement,
    UnmaskRequest,
)
from fedsec.secagg.opening import OpeningFailed, combine_secrets, open_round
from fedsec.secagg.server import CohortServer
from fedsec.secagg.views import sketch_commitment, vector_hash

PHASES = (Phase.ADVERTISE_KEYS, Phase.SHARE_KEYS, Phase.MASKED_INPUT, Phase.SKETCH, Phase.CONSISTENCY_CHECK, Phase.UNMASK)
KINDS = {
    Phase.ADVERTISE_KEYS: Advert, Phase.SHARE_KEYS: Dealing, Phase.MASKED_INPUT: Input, Phase.SKETCH: SketchStatement,
    Phase.CONSISTENCY_CHECK: Consent, Phase.UNMASK: Shares,
}  # fmt: skip
ACCEPT = [0, 1, 2, 3]


def snapshot(server: CohortServer) -> bytes:
    """All that a server knows."""
    return pickle.dumps({name: value for name, value in vars(server).items() if name != "verify"})


def refused(fed: Any, sender: int, data: bytes, match: str | None = None) -> PeerError:
    """The message is refused in its sender's name, and nothing changed."""
    before = snapshot(fed.server)
    with pytest.raises(PeerError, match=match) as caught:
        fed.deliver(sender, data)
    assert snapshot(fed.server) == before
    assert caught.value.phase == fed.server.phase
    return caught.value


@pytest.fixture(scope="module")
def stages(rounds: Any) -> dict[Phase, Any]:
    """A federation of 6 in each phase: everybody answered, nobody's answer has been delivered."""
    fed, made = rounds.Federation(num_clients=6, name="server tests"), {}
    for phase in PHASES:
        for index in fed.server.asked():
            fed.answer(index)
        made[phase] = fed.fork()
        for index in fed.server.asked():
            fed.deliver(index, fed.messages[phase][index])
        fed.advance(accept=ACCEPT)
    made[Phase.DONE] = fed
    return made


@pytest.fixture
def at(stages: dict[Phase, Any]) -> Callable[[Phase], Any]:
    return lambda phase: stages[phase].fork()


each_phase = pytest.mark.parametrize("phase", PHASES)


def statement_of(fed: Any, phase: Phase, index: int) -> tuple[Any, bytes]:
    envelope = Envelope.decode(fed.messages[phase][index])
    return KINDS[phase].decode(envelope.content), envelope.attachment


# --- what is taken ---


@each_phase
def test_each_phase_takes_its_own_message_and_no_other(at: Any, phase: Phase) -> None:
    everything = at(Phase.DONE).messages
    for other in PHASES:
        if other is not phase:
            refused(at(phase), 2, everything[other][2])
    fed = at(phase)
    before = snapshot(fed.server)
    fed.deliver(2, fed.messages[phase][2])
    assert snapshot(fed.server) != before


@each_phase
def test_every_flipped_byte_of_a_message_is_refused(at: Any, phase: Phase) -> None:
    fed = at(phase)
    message, before = fed.messages[phase][2], snapshot(fed.server)
    for place in range(len(message)):
        with pytest.raises(PeerError):
            fed.deliver(2, message[:place] + bytes([message[place] ^ (1 << place * 5 % 8)]) + message[place + 1 :])
        assert place % 16 or snapshot(fed.server) == before
    assert snapshot(fed.server) == before


@each_phase
def test_cut_extended_and_empty_messages_are_refused(at: Any, phase: Phase) -> None:
    fed = at(phase)
    message = fed.messages[phase][2]
    for data in (b"", message[:5], message[:-1], message + b"\0", message * 2):
        refused(fed, 2, data)


@each_phase
def test_a_second_answer_is_refused_be_it_the_same_or_another(at: Any, phase: Phase) -> None:
    fed = at(phase)
    fed.deliver(2, fed.messages[phase][2])
    refused(fed, 2, fed.messages[phase][2], "second answer")
    statement, attachment = statement_of(fed, phase, 2)
    refused(fed, 2, fed.sign(2, statement, attachment=attachment), "second answer")


@each_phase
def test_a_message_of_another_member_is_refused(at: Any, phase: Phase) -> None:
    fed = at(phase)
    refused(fed, 2, fed.messages[phase][3], "verify")
    statement, attachment = statement_of(fed, phase, 3)
    refused(fed, 2, fed.sign(2, statement, attachment=attachment), "another member")
    renamed = replace(statement, sender=2)
    refused(fed, 2, fed.sign(3, renamed, attachment=attachment), "verify")


@each_phase
def test_a_statement_of_another_round_is_refused(at: Any, phase: Phase) -> None:
    fed = at(phase)
    statement, attachment = statement_of(fed, phase, 2)
    refused(fed, 2, fed.sign(2, replace(statement, context=bytes(32)), attachment=attachment), "another round")


@each_phase
@pytest.mark.parametrize("sender", [-1, 6, 1 << 20])
def test_an_unknown_sender_is_refused(at: Any, phase: Phase, sender: int) -> None:
    fed = at(phase)
    error = refused(fed, sender, fed.messages[phase][2], "was not asked")
    assert error.client_id == f"member {sender}"


@pytest.mark.parametrize("phase", PHASES[1:])
def test_who_fell_out_before_is_not_asked_and_not_heard(rounds: Any, stages: dict[Phase, Any], phase: Phase) -> None:
    """Of the consents alone it does not matter: who sketched is asked to unmask, consent or not."""
    previous = PHASES[PHASES.index(phase) - 1]
    fed = rounds.Federation(num_clients=6, name="server tests").run(phase, absent={previous: [5]})
    assert (5 in fed.server.asked()) == (phase is Phase.UNMASK)
    assert (5 in fed.requests[phase]) == (phase is Phase.UNMASK)
    if phase is not Phase.UNMASK:
        refused(fed, 5, stages[phase].messages[phase][5], "was not asked")


def test_nothing_is_taken_or_asked_when_the_round_is_over(at: Any) -> None:
    for fed in (at(Phase.DONE), at(Phase.SKETCH)):
        if fed.server.phase is not Phase.DONE:
            fed.server.abort()
        with pytest.raises(LocalProtocolError, match="nothing is taken"):
            fed.deliver(2, fed.messages[Phase.UNMASK].get(2, b""))
        with pytest.raises(LocalProtocolError, match="nothing is asked"):
            fed.server.requests()
        with pytest.raises(LocalProtocolError):
            fed.server.close()
        assert fed.server.asked() == ()


# --- statements that are signed and unsound ---


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"weight": 0}, "weight"), ({"weight": 101}, "weight"), ({"mask_key": bytes(32)}, "small order"),
        ({"box_key": b"\xec" + b"\xff" * 30 + b"\x7f"}, "small order"), ({"mask_key": b"\xff" * 32}, "canonical"),
        ({"box_key": b"\xed" + b"\xff" * 30 + b"\x7f"}, "canonical"),
    ],
)  # fmt: skip
def test_an_advert_with_unsound_keys_or_weight_is_refused(at: Any, changes: Any, match: str) -> None:
    fed = at(Phase.ADVERTISE_KEYS)
    statement, _ = statement_of(fed, Phase.ADVERTISE_KEYS, 2)
    refused(fed, 2, fed.sign(2, replace(statement, **changes)), match)


@pytest.mark.parametrize(
    ("field", "taken"), [("mask_key", "mask_key"), ("mask_key", "box_key"), ("box_key", "mask_key"), ("box_key", "box_key")]
)
def test_a_key_that_somebody_advertised_is_refused(at: Any, field: str, taken: str) -> None:
    fed = at(Phase.ADVERTISE_KEYS)
    fed.deliver(3, fed.messages[Phase.ADVERTISE_KEYS][3])
    statement, _ = statement_of(fed, Phase.ADVERTISE_KEYS, 2)
    other, _ = statement_of(fed, Phase.ADVERTISE_KEYS, 3)
    refused(fed, 2, fed.sign(2, replace(statement, **{field: getattr(other, taken)})), "advertised before")
    refused(fed, 2, fed.sign(2, replace(statement, mask_key=statement.box_key)), "advertised before")


@pytest.mark.parametrize("phase", [Phase.ADVERTISE_KEYS, Phase.CONSISTENCY_CHECK, Phase.UNMASK])
def test_an_attachment_where_none_belongs_is_refused(at: Any, phase: Phase) -> None:
    fed = at(phase)
    statement, _ = statement_of(fed, phase, 2)
    refused(fed, 2, fed.sign(2, statement, attachment=b"x"), "attachment")


def dealing_with(fed: Any, dealer: int, change: Callable[[list[DealtLeaf]], Any]) -> bytes:
    """A dealing whose changed leaves the dealer signs."""
    _, attachment = statement_of(fed, Phase.SHARE_KEYS, dealer)
    leaves = list(DealtLeaves.decode(attachment).leaves)
    change(leaves)
    dealing = Dealing(context=fed.server.context, sender=dealer, root=merkle_root(leaf_hashes(leaves)))
    return fed.sign(dealer, dealing, attachment=DealtLeaves(leaves=tuple(leaves)).encode())


@pytest.mark.parametrize(
    "change",
    [
        lambda leaves: leaves.pop(),
        lambda leaves: leaves.append(leaves[-1]),
        lambda leaves: leaves.reverse(),
        lambda leaves: leaves.__setitem__(0, leaves[1]),
        lambda leaves: leaves.append(replace(leaves[-1], receiver=6)),
        lambda leaves: leaves.__setitem__(5, replace(leaves[5], receiver=6)),
        lambda leaves: leaves.clear(),
    ],
    ids=["one_missing", "one_twice", "reversed", "one_for_another", "one_more", "a_stranger", "none"],
)
def test_a_dealing_that_is_not_one_leaf_a_member_is_refused(at: Any, change: Any) -> None:
    fed = at(Phase.SHARE_KEYS)
    refused(fed, 2, dealing_with(fed, 2, change), "one for each member")


def test_leaves_that_are_not_those_under_the_signed_root_are_refused(at: Any) -> None:
    fed = at(Phase.SHARE_KEYS)
    statement, _ = statement_of(fed, Phase.SHARE_KEYS, 2)
    other = Envelope.decode(dealing_with(fed, 2, lambda leaves: leaves.__setitem__(0, replace(leaves[0], tag=bytes(32)))))
    refused(fed, 2, fed.sign(2, statement, attachment=other.attachment), "signed root")
    refused(fed, 2, fed.sign(2, statement), "head|expected")


@pytest.mark.parametrize("size", [0, 156, 161, 164])
def test_a_vector_of_another_length_is_refused(at: Any, size: int) -> None:
    fed = at(Phase.MASKED_INPUT)
    statement, _ = statement_of(fed, Phase.MASKED_INPUT, 2)
    refused(fed, 2, fed.sign(2, statement, attachment=bytes(size)), "bytes of vector, expected 160")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"vector_hash": bytes(32)}, "hash"), ({"base_view": bytes(32)}, "another view"), ({"disputed": (2,)}, "dispute"),
        ({"disputed": (6,)}, "dispute"), ({"disputed": (0, 65535)}, "dispute"),
    ],
)  # fmt: skip
def test_an_input_that_does_not_fit_the_round_is_refused(at: Any, changes: Any, match: str) -> None:
    fed = at(Phase.MASKED_INPUT)
    statement, attachment = statement_of(fed, Phase.MASKED_INPUT, 2)
    refused(fed, 2, fed.sign(2, replace(statement, **changes), attachment=attachment), match)


def test_a_copied_upload_is_refused(at: Any) -> None:
    """The hash is keyed by context and sender."""
    fed = at(Phase.MASKED_INPUT)
    statement, _ = statement_of(fed, Phase.MASKED_INPUT, 2)
    other, vector = statement_of(fed, Phase.MASKED_INPUT, 3)
    refused(fed, 2, fed.sign(2, replace(statement, vector_hash=other.vector_hash), attachment=vector), "hash")


def sketch_with(fed: Any, index: int, values: np.ndarray, *, salt: bytes = bytes(32), **changes: Any) -> bytes:
    """A sketch of the member's choice, committed to as it should be."""
    raw = values.astype("<i4").tobytes()
    commitment = sketch_commitment(fed.server.context, index, salt, raw)
    statement = SketchStatement(context=fed.server.context, sender=index, view=fed.server.view, commitment=commitment)
    return fed.sign(index, replace(statement, **changes), attachment=SketchOpening(salt=salt, sketch=raw).encode())


def test_a_sketch_that_is_not_committed_to_or_of_another_form_is_refused(at: Any) -> None:
    fed = at(Phase.SKETCH)
    right = np.zeros(16, dtype=np.int32)
    for message, match in [
        (sketch_with(fed, 2, right, view=bytes(32)), "another view"),
        (sketch_with(fed, 2, right, commitment=bytes(32)), "committed"),
        (sketch_with(fed, 2, np.zeros(8, dtype=np.int32)), "another length"),
        (sketch_with(fed, 2, np.zeros(24, dtype=np.int32)), "another length"),
        (sketch_with(fed, 2, np.zeros(0, dtype=np.int32)), "another length"),
    ]:
        refused(fed, 2, message, match)
    statement, attachment = statement_of(fed, Phase.SKETCH, 2)
    _, others = statement_of(fed, Phase.SKETCH, 3)
    refused(fed, 2, fed.sign(2, statement, attachment=others), "committed")
    refused(fed, 2, fed.sign(2, statement), "head|expected")
    fed.deliver(2, fed.sign(2, statement, attachment=attachment))


def test_consent_to_something_else_is_refused(at: Any) -> None:
    fed = at(Phase.CONSISTENCY_CHECK)
    statement, _ = statement_of(fed, Phase.CONSISTENCY_CHECK, 2)
    for changes in ({"view": bytes(32)}, {"agreement": bytes(32)}):
        refused(fed, 2, fed.sign(2, replace(statement, **changes)), "something else")


def test_shares_of_another_agreement_or_number_are_refused(at: Any) -> None:
    fed = at(Phase.UNMASK)
    statement, _ = statement_of(fed, Phase.UNMASK, 2)
    shares = statement.shares
    for changes in ({"view": bytes(32)}, {"agreement": bytes(32)}, {"shares": shares[:-1]}, {"shares": (*shares, b"")}, {"shares": ()}):
        refused(fed, 2, fed.sign(2, replace(statement, **changes)), "shares of another round")


def test_a_wrong_share_is_kept_as_a_lie_and_never_combined(at: Any) -> None:
    fed = at(Phase.UNMASK)
    statement, _ = statement_of(fed, Phase.UNMASK, 2)
    fed.deliver(2, fed.sign(2, replace(statement, shares=(bytes(32), b"", *statement.shares[2:]))))
    assert fed.server.released[2].lies == (0,)
    assert sorted(fed.server.released[2].shares) == [2, 3, 4, 5]
    for index in (0, 1, 3, 4, 5):
        fed.deliver(index, fed.messages[Phase.UNMASK][index])
    fed.server.close()
    opened = fed.open()
    assert np.array_equal(opened.total, fed.expected(ACCEPT))


def test_a_share_of_the_other_kind_is_a_lie(at: Any) -> None:
    fed = at(Phase.UNMASK)
    held = {shares.dealer: shares for shares in fed.ready[2].holdings.held}
    statement, _ = statement_of(fed, Phase.UNMASK, 2)
    fed.deliver(
        2, fed.sign(2, replace(statement, shares=(held[0].key_share, *statement.shares[1:4], held[4].seed_share, statement.shares[5])))
    )
    assert fed.server.released[2].lies == (0, 4)


# --- what it asks ---


def test_requests_hold_what_everybody_said_and_nothing_else(at: Any) -> None:
    done = at(Phase.DONE)
    received = MaskedInputRequest.decode(done.requests[Phase.MASKED_INPUT][2])
    assert [part.sender for part in received.dealt] == [0, 1, 2, 3, 4, 5]
    assert [part.leaf == b"" and part.path == () for part in received.dealt] == [False, False, True, False, False, False]
    for index in (0, 3):
        leaf = done.server.dealings[0 if index else 3].leaves[index]
        assert leaf.encode() in done.requests[Phase.MASKED_INPUT][index]
        assert leaf.encode() not in done.requests[Phase.MASKED_INPUT][2]
    sketching = SketchRequest.decode(done.requests[Phase.SKETCH][2])
    assert sketching.nonce == done.nonce
    assert done.nonce not in b"".join(data for phase in PHASES[:3] for data in done.requests[phase].values())
    unmask = UnmaskRequest.decode(done.requests[Phase.UNMASK][2])
    assert [part.sender for part in unmask.certificate] == [0, 1, 2, 3]  # t consents are enough, and every member checks each
    assert ([part.sender for part in unmask.accepted], unmask.rejected) == (ACCEPT, (4, 5))


def test_no_sketch_and_no_salt_goes_to_a_peer(at: Any) -> None:
    done = at(Phase.DONE)
    for made in done.server.sketches.values():
        for phase in (Phase.CONSISTENCY_CHECK, Phase.UNMASK):
            sent = b"".join(done.requests[phase].values())
            assert made.salt not in sent
            assert made.sketch.astype("<i4").tobytes() not in sent


def lying_tag(fed: Any, dealer: int, peer: int) -> None:
    """Everybody deals, one with a wrong tag for one peer, and goes on as if it were right."""
    fed.messages[Phase.SHARE_KEYS][dealer] = dealing_with(
        fed, dealer, lambda leaves: leaves.__setitem__(peer, replace(leaves[peer], tag=bytes(32)))
    )
    statement, _ = statement_of(fed, Phase.SHARE_KEYS, dealer)
    pairs = tuple(replace(pair, tag=bytes(32)) if pair.peer == peer else pair for pair in fed.states[dealer].pairs)
    fed.states[dealer] = replace(fed.states[dealer], root=statement.root, pairs=pairs)
    for index in range(6):
        fed.deliver(index, fed.messages[Phase.SHARE_KEYS][index])


@pytest.mark.parametrize("accepted", [[0, 2, 3, 4], [0, 1, 3, 4], [0, 1, 2, 3], [0, 1, 3, 5]], ids=["both", "one", "other", "neither"])
def test_an_edge_whose_tags_differ_is_removed_and_the_sum_is_exact_whoever_of_its_ends_is_accepted(at: Any, accepted: list[int]) -> None:
    fed = at(Phase.SHARE_KEYS)
    lying_tag(fed, 2, 4)
    fed.advance()
    assert fed.server.removed == (RemovedEdge(low=2, high=4),)
    opened = fed.finish(accept=accepted)
    assert np.array_equal(opened.total, fed.expected(accepted))
    assert [edge.peer for edge in fed.ready[4].holdings.edges] == [0, 1, 3, 5]


def test_more_removed_edges_than_a_request_can_hold_end_the_round(at: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsec.secagg.server.MAX_REMOVED", 0)
    fed = at(Phase.SHARE_KEYS)
    lying_tag(fed, 2, 4)
    with pytest.raises(RoundAborted, match="1 edges"):
        fed.server.close()
    assert fed.server.phase is Phase.ABORTED


def test_who_is_excluded_is_not_asked_and_not_heard(rounds: Any) -> None:
    fed = rounds.Federation(num_clients=6, name="excluded")
    fed.server.excluded = frozenset({3})
    _, message = fed.step(Phase.ADVERTISE_KEYS, 3, fed.signed_config)
    refused(fed, 3, message, "was not asked")
    opened = fed.finish()
    assert opened.accepted == (0, 1, 2, 4, 5)
    assert np.array_equal(opened.total, fed.expected(opened.accepted))


# --- the end of a phase ---


CLOSED = (Phase.ADVERTISE_KEYS, Phase.SHARE_KEYS, Phase.MASKED_INPUT, Phase.CONSISTENCY_CHECK)


@pytest.mark.parametrize("phase", CLOSED)
@pytest.mark.parametrize("minimum", [3, 5])
def test_a_phase_with_too_few_answers_aborts_the_round(rounds: Any, phase: Phase, minimum: int) -> None:
    """Enough is t = 4, or a_min where that is more."""
    enough = max(4, minimum)
    fed = rounds.Federation(num_clients=6, name="too few", minimum_accepted=minimum).run(phase)
    for index in range(enough - 1):
        fed.answer(index)
        fed.deliver(index, fed.messages[phase][index])
    good = fed.fork()
    with pytest.raises(RoundAborted, match=f"{enough - 1} of 6 members .*{enough} are needed"):
        fed.server.close()
    assert fed.server.phase is Phase.ABORTED
    assert fed.server.released == {}
    good.answer(enough - 1)
    good.deliver(enough - 1, good.messages[phase][enough - 1])
    good.server.close()
    assert good.server.phase is PHASES[PHASES.index(phase) + 1]


def test_phases_end_as_they_should_and_not_otherwise(at: Any) -> None:
    with pytest.raises(LocalProtocolError, match="not closed like this"):
        at(Phase.SKETCH).server.close()
    for phase in PHASES:
        server = at(phase).server
        if phase is not Phase.SKETCH:
            with pytest.raises(LocalProtocolError):
                server.decide(ACCEPT)
            with pytest.raises(LocalProtocolError):
                server.open_nonce([bytes(32)], bytes(32))
            with pytest.raises(LocalProtocolError):
                server.input_root()
        with pytest.raises(LocalProtocolError):
            combine_secrets(server)


def test_the_matrix_is_fixed_from_the_true_root_of_this_cohort(rounds: Any) -> None:
    fed = rounds.Federation(num_clients=6, name="two", num_cohorts=2, cohort=1).run(Phase.SKETCH)
    for roots in ([bytes(32), bytes(32)], [fed.server.input_root(), bytes(32)]):
        with pytest.raises(LocalProtocolError):
            fed.server.open_nonce(roots, fed.nonce)
    with pytest.raises(LocalProtocolError, match="commits"):
        fed.server.open_nonce([bytes(32), fed.server.input_root()], bytes(32))
    with pytest.raises(LocalProtocolError, match="not fixed"):
        fed.server.requests()
    fed.server.open_nonce([bytes(32), fed.server.input_root()], fed.nonce)
    with pytest.raises(LocalProtocolError, match="once"):
        fed.server.open_nonce([bytes([1]) * 32, fed.server.input_root()], fed.nonce)


def test_before_the_matrix_is_fixed_no_sketch_is_taken(stages: dict[Phase, Any]) -> None:
    fed = stages[Phase.MASKED_INPUT].fork()
    for index in range(6):
        fed.deliver(index, fed.messages[Phase.MASKED_INPUT][index])
    fed.server.close()
    refused(fed, 2, stages[Phase.SKETCH].messages[Phase.SKETCH][2])
    with pytest.raises(LocalProtocolError):
        fed.server.decide(ACCEPT)


# --- dealers and holders ---


def disputing(fed: Any, disputes: dict[int, tuple[int, ...]], absent: tuple[int, ...] = ()) -> None:
    """Deliver inputs in which members dispute dealers."""
    for index in range(len(fed.members)):
        if index not in absent:
            statement, attachment = statement_of(fed, Phase.MASKED_INPUT, index)
            fed.deliver(index, fed.sign(index, replace(statement, disputed=disputes.get(index, ())), attachment=attachment))


def test_a_dealer_that_more_than_c_members_dispute_is_a_suspect_and_the_round_ends_before_unmask(at: Any) -> None:
    fed = at(Phase.MASKED_INPUT)
    disputing(fed, {0: (3,), 1: (2, 3)})
    with pytest.raises(RoundAborted, match="client-0-3;"):
        fed.server.close()
    assert fed.server.phase is Phase.ABORTED
    assert fed.server.suspects == (3,)
    assert fed.server.released == {}


def test_c_disputes_are_no_reason_to_suspect(at: Any) -> None:
    fed = at(Phase.MASKED_INPUT)
    disputing(fed, {0: (1, 2, 3, 4, 5)})
    fed.server.close()
    assert (fed.server.phase, fed.server.suspects) == (Phase.SKETCH, ())


def test_a_member_whose_shares_too_few_present_members_hold_ends_the_round(at: Any) -> None:
    fed = at(Phase.MASKED_INPUT)
    disputing(fed, {0: (3,)}, absent=(4, 5))
    with pytest.raises(RoundAborted, match="3 present members hold shares of client-0-3"):
        fed.server.close()
    assert fed.server.phase is Phase.ABORTED


def test_holders_are_counted_again_among_those_who_sketched(at: Any, rounds: Any) -> None:
    fed = at(Phase.MASKED_INPUT)
    disputing(fed, {0: (3,)}, absent=(5,))
    fed.server.close()
    fed.server.open_nonce([fed.server.input_root()], fed.nonce)
    for index in range(4):
        fed.deliver(index, sketch_with(fed, index, np.zeros(16, dtype=np.int32)))
    with pytest.raises(RoundAborted, match="3 present members hold shares of client-0-3"):
        fed.server.decide(ACCEPT)
    assert fed.server.phase is Phase.ABORTED


# --- the gate and the accepted set ---


def test_a_sketch_over_the_norm_gate_cannot_be_accepted(at: Any) -> None:
    fed = at(Phase.SKETCH)
    for index in range(5):
        fed.deliver(index, fed.messages[Phase.SKETCH][index])
    fed.deliver(5, sketch_with(fed, 5, np.full(16, 2**31 - 1)))
    assert sorted(fed.server.screen()) == [0, 1, 2, 3, 4]
    assert fed.server.gated == (5,)
    with pytest.raises(LocalProtocolError):
        fed.server.decide([0, 1, 2, 5])
    assert fed.server.phase is Phase.SKETCH
    fed.server.decide([0, 1, 2, 3])
    assert fed.server.rejected == (4, 5)


def test_the_gate_lies_where_it_is_said_to(at: Any) -> None:
    """‖s‖² ≤ u·k/2·L², to the last unit."""
    fed = at(Phase.SKETCH)
    row = int((3.5 * 16 / 2 / 16) ** 0.5 * fed.config.norm_bound)
    fed.deliver(0, sketch_with(fed, 0, np.full(16, row)))
    fed.deliver(1, sketch_with(fed, 1, np.full(16, -row)))
    fed.deliver(2, sketch_with(fed, 2, np.full(16, row + 1)))
    fed.deliver(3, sketch_with(fed, 3, np.full(16, -(2**31))))
    assert sorted(fed.server.screen()) == [0, 1]
    assert fed.server.gated == (2, 3)


def test_a_member_that_was_not_screened_cannot_be_accepted(at: Any) -> None:
    fed = at(Phase.SKETCH)
    for index in range(5):
        fed.deliver(index, fed.messages[Phase.SKETCH][index])
    before = snapshot(fed.server)
    for accepted in ([0, 1, 2, 5], [0, 1, 2, 6], [0, 1, 2, -1]):
        with pytest.raises(LocalProtocolError):
            fed.server.decide(accepted)
    assert snapshot(fed.server) == before


@pytest.mark.parametrize("accepted", [[], [0], [0, 1], [1, 1, 1, 2]])
def test_an_accepted_set_under_a_min_ends_the_round(at: Any, accepted: list[int]) -> None:
    fed = at(Phase.SKETCH)
    for index in range(6):
        fed.deliver(index, fed.messages[Phase.SKETCH][index])
    with pytest.raises(RoundAborted, match="are accepted, 3 are needed"):
        fed.server.decide(accepted)
    assert fed.server.phase is Phase.ABORTED


def test_the_order_of_the_accepted_does_not_matter(at: Any) -> None:
    agreements = set()
    for accepted in ([0, 1, 2, 3], [3, 2, 1, 0], (0, 0, 1, 2, 3), {3, 0, 2, 1}):
        fed = at(Phase.SKETCH)
        for index in range(6):
            fed.deliver(index, fed.messages[Phase.SKETCH][index])
        fed.server.decide(accepted)
        assert (fed.server.accepted, fed.server.rejected) == ((0, 1, 2, 3), (4, 5))
        agreements.add(fed.server.agreement)
    assert len(agreements) == 1


# --- drop-outs ---


def finish(fed: Any, absent: dict[Phase, list[int]]) -> Any:
    """An ``Opened``, or RoundAborted with nothing opened."""
    return fed.finish(absent=absent)


@each_phase
@pytest.mark.parametrize(("clients", "corrupt"), [(4, 1), (6, 1), (8, 1), (9, 2)])
def test_the_tolerated_drop_outs_at_any_stage_leave_the_exact_sum_and_one_more_ends_the_round(
    rounds: Any, clients: int, corrupt: int, phase: Phase
) -> None:
    """The worst that is tolerated: c corrupt members are silent from that stage on too."""
    limits = CohortLimits.of(clients, corrupt)
    most = limits.tolerated_dropouts + corrupt
    fed = rounds.Federation(num_clients=clients, num_corrupt=corrupt, name="drop-outs")
    opened = finish(fed, {phase: list(range(most))})
    late = phase in (Phase.CONSISTENCY_CHECK, Phase.UNMASK)
    assert opened.accepted == tuple(range(0 if late else most, clients))
    assert np.array_equal(opened.total, fed.expected(opened.accepted))
    assert opened.weights == {index: fed.weights[index] for index in opened.accepted}
    fed = rounds.Federation(num_clients=clients, num_corrupt=corrupt, name="drop-outs")
    with pytest.raises(RoundAborted):
        finish(fed, {phase: list(range(most + 1))})
    if phase is Phase.UNMASK:
        assert len(fed.server.released) == clients - most - 1 < fed.config.threshold
    else:
        assert fed.server.phase is Phase.ABORTED
        assert fed.server.released == {}


def test_who_vanishes_while_it_trains_is_in_d_and_its_masks_come_off(rounds: Any) -> None:
    """U2 without U3: its mask key opens, its self-mask seed never; it uploaded nothing."""
    fed = rounds.Federation(num_clients=6, name="vanished")
    opened = fed.finish(absent={Phase.MASKED_INPUT: [1, 4]})
    assert (opened.accepted, fed.server.rejected) == ((0, 2, 3, 5), (1, 4))
    assert np.array_equal(opened.total, fed.expected([0, 2, 3, 5]))
    secrets, bad = combine_secrets(fed.server)
    assert (sorted(secrets.seeds), sorted(secrets.keys), bad) == ([0, 2, 3, 5], [1, 4], ())
    vanished = fed.before[Phase.MASKED_INPUT].get(1) or fed.states[1]
    assert vanished.seed not in b"".join(fed.messages[Phase.UNMASK].values())


def test_an_upload_that_comes_too_late_is_refused_and_stays_masked(rounds: Any) -> None:
    fed = rounds.Federation(num_clients=6, name="late").run(Phase.SKETCH, absent={Phase.MASKED_INPUT: [1]})
    _, late = fed.step(Phase.MASKED_INPUT, 1, fed.requests[Phase.MASKED_INPUT][1])
    refused(fed, 1, late, "was not asked")
    opened = fed.finish()
    assert 1 not in opened.accepted


def test_a_rejected_member_is_in_no_sum_though_it_answers_to_the_end(rounds: Any) -> None:
    fed = rounds.Federation(num_clients=6, name="rejected")
    opened = fed.finish(accept=[0, 1, 3, 5])
    assert np.array_equal(opened.total, fed.expected([0, 1, 3, 5]))
    assert sorted(fed.messages[Phase.UNMASK]) == [0, 1, 2, 3, 4, 5]


ABSENT = st.lists(st.sampled_from([*PHASES, None]), min_size=6, max_size=6)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(absent=ABSENT, rejected=st.sets(st.integers(0, 5), max_size=2))
def test_random_drop_outs_leave_the_exact_sum_or_none(rounds: Any, absent: list[Phase | None], rejected: set[int]) -> None:
    fed = rounds.Federation(num_clients=6, name="random drop-outs")
    gone: dict[Phase, list[int]] = {}
    for index, phase in enumerate(absent):
        if phase is not None:
            gone.setdefault(phase, []).append(index)
    try:
        fed.run(Phase.SKETCH, absent=gone)
        sketching = [index for index in fed.server.asked() if absent[index] is not Phase.SKETCH]
        accepted = [index for index in sketching if index not in rejected]
        opened = fed.finish(absent=gone, accept=accepted)
    except RoundAborted:
        limits = CohortLimits.of(6, 1)
        too_many = sum(phase is not None for phase in absent) > limits.tolerated_dropouts + 1
        assert too_many or len(accepted) < limits.minimum_accepted
        return
    assert opened.accepted == tuple(accepted)
    assert np.array_equal(opened.total, fed.expected(accepted))


# --- sums that are not what the sketches say ---


def test_a_changed_upload_is_never_opened(rounds: Any) -> None:
    """A client adds to its upload what its sketch does not show."""
    fed = rounds.Federation(num_clients=6, name="poison").run(Phase.MASKED_INPUT)
    for index in range(6):
        fed.answer(index)
    statement, attachment = statement_of(fed, Phase.MASKED_INPUT, 2)
    vector = np.frombuffer(attachment, dtype="<u4").copy()
    vector[7] += 1
    changed = replace(statement, vector_hash=vector_hash(fed.server.context, 2, vector))
    fed.messages[Phase.MASKED_INPUT][2] = fed.sign(2, changed, attachment=vector.astype("<u4").tobytes())
    from fedsec.secagg.views import input_digest

    fed.states[2] = replace(fed.states[2], input_digest=input_digest(changed.encode()))
    for index in range(6):
        fed.deliver(index, fed.messages[Phase.MASKED_INPUT][index])
    fed.advance()
    good = fed.fork()
    fed.run()
    with pytest.raises(OpeningFailed):
        fed.open()
    opened = good.finish(accept=[0, 1, 3, 4])
    assert np.array_equal(opened.total, good.expected([0, 1, 3, 4]))


def test_an_opening_takes_the_secrets_of_all(at: Any) -> None:
    server = at(Phase.DONE).server
    secrets, _ = combine_secrets(server)
    for less in (
        replace(secrets, seeds={index: seed for index, seed in secrets.seeds.items() if index}),
        replace(secrets, keys={}),
    ):
        with pytest.raises(LocalProtocolError):
            open_round(server, less)


def test_a_server_is_made_for_its_own_cohort_only(rounds: Any) -> None:
    fed = rounds.Federation(num_clients=6, name="made")
    for members in (fed.members[:5], (*fed.members[:5], fed.members[0])):
        with pytest.raises(ValueError):
            CohortServer(config=fed.config, members=members, verify=fed.verify)


def test_the_text_of_released_shares_and_secrets_hides_them(at: Any) -> None:
    secrets, _ = combine_secrets(at(Phase.DONE).server)
    text = repr(secrets)
    for secret in (*secrets.seeds.values(), *secrets.keys.values()):
        assert repr(secret)[2:-1] not in text
    assert "nonce=" not in "".join(field.name + "=" for field in dataclasses.fields(CohortServer) if field.repr)


def test_the_text_of_a_released_answer_hides_its_shares(at: Any) -> None:
    released = at(Phase.DONE).server.released[2]
    assert repr(released.shares[0])[2:-1] not in repr(released)
