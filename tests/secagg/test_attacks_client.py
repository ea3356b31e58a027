"""Lying members, alone or with up to c - 1 others, against an honest server: caught, named where their own signatures prove it, and never anybody else.

And the other way round: accusations that a malicious server and its colluders make up against an honest member.
"""

import copy
import importlib.util
import itertools
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedsec.errors import FedsecError, LocalProtocolError, PeerError, RoundAborted, VerificationError
from fedsec.merkle import inclusion_proofs
from fedsec.secagg.blame import BlameServer, bare, name_bad_dealers, name_share_liars, proven_leaf, view_opening
from fedsec.secagg.dealing import leaf_hashes
from fedsec.secagg.evidence import verify_evidence
from fedsec.secagg.evidence_record import Evidence, EvidenceKind, OpenedKey, ProvenLeaf, ShownShare
from fedsec.secagg.keys import PrivateKey
from fedsec.secagg.labels import Phase
from fedsec.secagg.messages import BlameRequest, BlameValues, Dealing, DealtLeaves, EdgeSeed, Envelope, RemovedEdge, Shares
from fedsec.secagg.opening import OpeningFailed, combine_secrets, open_round
from fedsec.secagg.server import Dealt
from fedsec.secagg.sketch import verify_norm


def _load(name):
    full = f"fedsec_tests_secagg_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, Path(__file__).with_name(f"{name}.py"))
        sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[full])
    return sys.modules[full]


hostile = _load("hostile")
Federation = hostile.Federation

LIAR = 3
D, K = 40, 16


def a_round(name, until, **kwargs):
    """A round of five, c = 1, in a phase in which everybody has answered and nothing is delivered."""
    fed = Federation(num_clients=kwargs.pop("num_clients", 5), name=name, **kwargs).run(until)
    hostile.answer_all(fed)
    return fed


def on(fed, *, accept=None, absent=None):
    """Deliver what was answered, and be honest to the end."""
    refused = hostile.deliver_all(fed)
    fed.advance(accept=accept)
    fed.run(accept=accept, absent=absent)
    return refused


def fails_to_open(fed):
    """The opening fails; the secrets, for BLAME."""
    secrets = hostile.secrets_of(fed)
    with pytest.raises(OpeningFailed):
        open_round(fed.server, secrets)
    return secrets


def lonely(*places, value=1, size=D):
    vector = np.zeros(size, dtype=np.int64)
    vector[list(places)] = value
    return vector


# --- bad dealing ---


@pytest.mark.parametrize("rejected", [False, True], ids=["in A", "in D"])
@pytest.mark.parametrize("story", ["another seed", "another key", "one secret for both"])
def test_shares_that_match_their_hashes_and_are_of_another_secret(story, rejected):
    fed = a_round(story, Phase.SHARE_KEYS)
    before = fed.before[Phase.SHARE_KEYS][LIAR]
    other = bytes([7]) * 31 + b"\1"
    match story:
        case "another seed":
            hostile.deal_secrets(fed, LIAR, other, before.mask_key)
        case "another key":
            hostile.deal_secrets(fed, LIAR, before.seed, other)
        case "one secret for both":
            hostile.deal_secrets(fed, LIAR, before.mask_key, before.mask_key, one_polynomial=True)
    accept = [0, 1, 2, 4] if rejected else [0, 1, 2, 3]
    assert not on(fed, accept=accept)
    secrets, bad = combine_secrets(fed.server)
    if rejected is (story != "another key"):  # the secret that is asked for is a true one
        assert not bad
        assert np.array_equal(fed.open().total, fed.expected(accept))
        return
    assert [dealing.dealer for dealing in bad] == [LIAR]
    with pytest.raises(LocalProtocolError):  # nothing is used
        open_round(fed.server, secrets)
    named = name_bad_dealers(fed.server, bad)
    hostile.check_named(fed, named, {LIAR})
    assert [(one.index, one.kind) for one in named] == [(LIAR, EvidenceKind.DEALING)]


def test_a_dealer_of_too_few_good_boxes_does_not_get_to_unmask():
    # N = 10, c = 1, t = 6: t - 1 - c = 4 honest members get good boxes, five get boxes that do not hold what their hashes say. Neither secret
    # of this dealer could ever be combined, in A or in D; so the round ends before any share is out, and the dealer is known locally.
    fed = a_round("few good boxes", Phase.SHARE_KEYS, num_clients=10)
    hostile.deal(fed, LIAR, lambda leaf: replace(leaf, box=bytes(80)) if leaf.receiver in (4, 5, 6, 7, 8) else None)
    hostile.deliver_all(fed)
    fed.advance()
    hostile.answer_all(fed)
    hostile.deliver_all(fed)
    with pytest.raises(RoundAborted, match="left out"):
        fed.advance()
    assert fed.server.suspects == (LIAR,)
    assert not fed.server.released
    assert name_share_liars(fed.server) == ()


@pytest.mark.parametrize(
    "change", [{"box": bytes(80)}, {"box": b""}, {"seed_share_hash": bytes(32)}, {"key_share_hash": bytes(32)}], ids=str
)
def test_one_bad_box_is_a_dispute_and_the_sum_is_exact(change):
    fed = a_round("one bad box", Phase.SHARE_KEYS, num_clients=6)
    hostile.deal(fed, LIAR, lambda leaf: replace(leaf, **change) if leaf.receiver == 0 else None)
    assert not on(fed)
    assert fed.server.inputs[0].statement.disputed == (LIAR,)
    assert fed.server.released[0].statement.shares[LIAR] == b""  # "absent": who has no sound share sends none, and is not framed
    assert np.array_equal(fed.open().total, fed.expected(range(6)))
    assert name_share_liars(fed.server) == ()


def test_false_disputes_with_everybody_name_nobody_and_stop_nothing():
    fed = a_round("false disputes", Phase.MASKED_INPUT, num_clients=6)
    hostile.upload(fed, LIAR, disputed=(0, 1, 2, 4, 5))
    assert not on(fed)
    assert fed.server.suspects == ()
    assert np.array_equal(fed.open().total, fed.expected(range(6)))


def test_a_lying_edge_tag_removes_the_edge_and_the_sum_is_exact():
    fed = a_round("tags", Phase.SHARE_KEYS)
    hostile.deal(fed, LIAR, lambda leaf: replace(leaf, tag=bytes(32)) if leaf.receiver in (0, 4) else None)
    hostile.deliver_all(fed)
    fed.advance()
    assert fed.server.removed == (RemovedEdge(low=0, high=LIAR), RemovedEdge(low=LIAR, high=4))
    for index in (0, 1, 2, 4):
        fed.answer(index)
        fed.deliver(index, fed.messages[Phase.MASKED_INPUT][index])
    # The liar has more than c edges removed, so its own machine would sit out; it goes on by itself.
    assert {edge.peer for edge in fed.ready[0].holdings.edges} == {1, 2, 4}
    fed.advance()
    assert np.array_equal(fed.finish().total, fed.expected([0, 1, 2, 4]))


@pytest.mark.parametrize("accept", [None, [0, 1, 2, 4]], ids=["in A", "in D"])
def test_one_lying_tag_and_the_liar_stays(accept):
    fed = a_round("one tag", Phase.SHARE_KEYS)
    hostile.deal(fed, LIAR, lambda leaf: replace(leaf, tag=bytes(32)) if leaf.receiver == 0 else None)
    assert not on(fed, accept=accept)
    assert fed.server.removed == (RemovedEdge(low=0, high=LIAR),)
    assert np.array_equal(fed.open().total, fed.expected(accept or range(5)))


# --- shares at UNMASK ---


@pytest.mark.parametrize("story", ["random", "no field element", "wrong kind", "of another owner", "own"])
def test_a_share_that_was_never_dealt_names_its_sender(story):
    fed = a_round(story, Phase.UNMASK)
    shares = [hostile.both_shares(fed, LIAR, owner) for owner in range(5)]
    lie = {
        "random": lambda given: [bytes([1]) * 32, *given[1:]],
        "no field element": lambda given: [b"\xff" * 32, *given[1:]],
        "wrong kind": lambda given: [shares[0][1], *given[1:]],
        "of another owner": lambda given: [given[1], given[0], *given[2:]],
        "own": lambda given: [*given[:LIAR], bytes(32), *given[LIAR + 1 :]],
    }[story]
    hostile.release(fed, LIAR, lie)
    assert not on(fed)
    named = name_share_liars(fed.server)
    hostile.check_named(fed, named, {LIAR})
    assert [(one.index, one.kind) for one in named] == [(LIAR, EvidenceKind.SHARE)]
    assert np.array_equal(fed.open().total, fed.expected(range(5)))  # the lie is left out, the others suffice


def test_withheld_shares_of_one_owner_name_nobody():
    fed = a_round("withheld", Phase.UNMASK)
    hostile.release(fed, LIAR, lambda given: [b"", *given[1:]])
    on(fed)
    assert name_share_liars(fed.server) == ()
    assert np.array_equal(fed.open().total, fed.expected(range(5)))


def test_too_few_shares_open_nothing():
    fed = a_round("too few", Phase.UNMASK)
    for index in (2, 3):
        hostile.release(fed, index, lambda given: [b"", *given[1:]])
    on(fed)
    with pytest.raises(RoundAborted, match="3 shares"):
        combine_secrets(fed.server)


# --- uploads and sketches that lie ---


def test_half_the_ring_on_two_coordinates_would_vanish_from_signs_alone():
    # 2**31 and -2**31 are one residue: in any matrix of only ±1 each row sees ±2**31 ± 2**31 = 0.
    poison = lonely(5, 9, value=1 << 31)
    signs = np.random.default_rng(0).choice([-1, 1], size=(256, D))
    assert not np.any((signs @ poison).astype(np.uint32))
    fed = a_round("half ring", Phase.MASKED_INPUT)
    hostile.upload(fed, LIAR, add=poison)
    hostile.deliver_all(fed)
    fed.advance()
    seen = hostile.matrix_of(fed).product(poison).astype(np.uint32)
    assert np.any(seen)  # ours sees it, in about half of the rows
    fed.run()
    secrets = fails_to_open(fed)
    _, outcome = hostile.blame(fed, secrets)
    hostile.check_named(fed, outcome.named, {LIAR})
    assert [one.index for one in outcome.named] == [LIAR]


def test_a_sketch_that_is_reduced_modulo_the_ring():
    # V is a poison, the claim is R·V - 2**32·z in int32: true modulo 2**32, so every equation of BLAME holds. Either it does not pass the gate,
    # or (rows forged to pass) it is not true any more.
    fed = a_round("reduced", Phase.MASKED_INPUT)
    poison = np.random.default_rng(1).integers(1 << 28, 1 << 30, size=D) * 2
    hostile.upload(fed, LIAR, add=poison)
    hostile.deliver_all(fed)
    fed.advance()
    hostile.answer_all(fed)
    exact = hostile.matrix_of(fed).product(poison)
    assert np.abs(exact).max() >= 1 << 31  # over the integers it does not even fit
    reduced = fed.fork()
    hostile.sketch(reduced, LIAR, add=exact)
    assert not on(reduced)
    assert LIAR not in reduced.server.accepted
    assert reduced.server.gated == (LIAR,)
    assert np.array_equal(reduced.open().total, reduced.expected([0, 1, 2, 4]))


def test_the_gate_refuses_whoever_claims_what_it_uploaded_beyond_the_bound():
    fed = a_round("over the bound", Phase.MASKED_INPUT)
    poison = lonely(3, value=6 * hostile.rounds.NORM_BOUND)
    hostile.upload(fed, LIAR, add=poison)
    hostile.deliver_all(fed)
    fed.advance()
    hostile.answer_all(fed)
    hostile.sketch(fed, LIAR, add=hostile.matrix_of(fed).product(poison))
    on(fed)
    assert fed.server.gated == (LIAR,)
    with pytest.raises(VerificationError):
        verify_norm(fed.server.sketches[LIAR].sketch, norm_bound=fed.config.norm_bound, slack=fed.config.norm_slack)


def test_one_entry_plus_the_ring_is_nothing():
    fed = a_round("full ring", Phase.MASKED_INPUT)
    hostile.upload(fed, LIAR, add=lonely(7, value=1 << 32))
    assert not on(fed)
    assert np.array_equal(fed.open().total, fed.expected(range(5)))


@pytest.mark.parametrize("row", [0, 15, None])
@pytest.mark.parametrize("size", [1, -1, 1 << 18])
def test_a_lone_lie_in_a_sketch_is_caught_every_time_and_named(row, size):
    fed = a_round("lone lie", Phase.SKETCH)
    hostile.sketch(fed, LIAR, add=lonely(*([row] if row is not None else range(K)), value=size, size=K))
    assert not on(fed)
    secrets = fails_to_open(fed)
    _, outcome = hostile.blame(fed, secrets)
    hostile.check_named(fed, outcome.named, {LIAR})
    assert [(one.index, one.kind) for one in outcome.named] == [(LIAR, EvidenceKind.SKETCH)]
    assert not outcome.silent
    assert not outcome.wrapped


@pytest.mark.parametrize("place", ["upload", "wrong mask"])
def test_a_lie_in_the_upload_is_caught_and_named(place):
    fed = a_round(place, Phase.MASKED_INPUT)
    draw = np.random.default_rng(2)
    hostile.upload(fed, LIAR, add=lonely(7) if place == "upload" else draw.integers(-(1 << 31), 1 << 31, size=D))
    assert not on(fed, accept=[0, 1, 3, 4])  # with one of D, whose key is part of the evidence
    secrets = fails_to_open(fed)
    _, outcome = hostile.blame(fed, secrets)
    hostile.check_named(fed, outcome.named, {LIAR})
    assert [(one.index, one.kind) for one in outcome.named] == [(LIAR, EvidenceKind.SKETCH)]


def shifted(fed, liar, peer, residue):
    """The liar makes its own equation true: it puts what is missing into its value for the edge to ``peer``."""
    return lambda index, values: hostile.add_to_edge(values, peer, residue if liar < peer else -residue) if index == liar else values


def a_sketch_lie(name, **kwargs):
    """A lie of 7 in row 0 of the liar's sketch, to the end of UNMASK; and the secrets."""
    fed = a_round(name, Phase.SKETCH, **kwargs)
    hostile.sketch(fed, LIAR, add=lonely(0, value=7, size=K))
    on(fed)
    return fed, fails_to_open(fed), -lonely(0, value=7, size=K)


@pytest.mark.parametrize("peer", [0, 4])
def test_a_liar_moves_its_lie_to_an_edge_and_the_honest_end_opens_the_seed(peer):
    fed, secrets, residue = a_sketch_lie("on an edge")
    server, outcome = hostile.blame(fed, secrets, say=shifted(fed, LIAR, peer, residue), shut={LIAR})
    assert server.disputes == (tuple(sorted((LIAR, peer))),)
    hostile.check_named(fed, outcome.named, {LIAR})
    assert [(one.index, one.kind) for one in outcome.named] == [(LIAR, EvidenceKind.EDGE)]


def test_a_liar_moves_its_lie_to_the_edge_of_a_silent_honest_peer():
    fed, secrets, residue = a_sketch_lie("on a silent edge")
    silent = 1
    server, outcome = hostile.blame(fed, secrets, say=shifted(fed, LIAR, silent, residue), silent={silent})
    assert outcome.named == ()
    assert server.disputes == ()
    assert outcome.silent == (silent,)
    assert (LIAR, silent) in outcome.unresolved  # the pair is known, and which of the two lied is not
    assert not outcome.wrapped


def test_a_silent_liar_is_not_named_and_no_seed_is_opened_against_it():
    fed, secrets, _ = a_sketch_lie("silent")
    server, outcome = hostile.blame(fed, secrets, silent={LIAR})
    assert outcome.named == ()
    assert outcome.silent == (LIAR,)
    assert server.requests() == {}  # nobody is asked to open anything
    assert {pair[1] for pair in outcome.unresolved} == {LIAR}


def test_two_liars_that_dispute_their_own_edge_and_keep_it_shut_are_in_the_outcome():
    fed = a_round("shut", Phase.SKETCH, num_clients=8, num_corrupt=2)
    hostile.sketch(fed, 4, add=lonely(0, value=7, size=K))
    on(fed)
    secrets = fails_to_open(fed)
    server, outcome = hostile.blame(fed, secrets, say=shifted(fed, 4, 5, -lonely(0, value=7, size=K)), shut={4, 5})
    assert server.disputes == ((4, 5),)
    assert outcome.named == ()
    found = {index for value in vars(outcome).values() if isinstance(value, tuple) for pair in value for index in np.ravel(pair)}
    assert found == {4, 5}  # whoever runs the next round has a reason to leave these two out, and nobody else


def test_a_wrong_seed_and_a_seed_of_another_edge_name_nobody():
    fed, secrets, residue = a_sketch_lie("wrong seed")
    server = BlameServer(server=fed.server, secrets=secrets)
    for index, (request,) in server.requests().items():
        message = hostile.honest_values(fed, index, request)
        if index == LIAR:
            values = BlameValues.decode(Envelope.decode(message).content)
            message = fed.sign(LIAR, shifted(fed, LIAR, 0, residue)(LIAR, values))
        server.receive(index, message)
    server.close_values()
    seeds = {edge.peer: edge.seed for edge in fed.before[Phase.SKETCH][LIAR].holdings.edges}
    fields = {"context": fed.config.context(), "sender": LIAR, "view": fed.server.view}
    for lie in (
        EdgeSeed(**fields, peer=0, seed=bytes(32)),
        EdgeSeed(**fields, peer=0, seed=seeds[1]),
        EdgeSeed(**fields, peer=1, seed=seeds[1]),  # not in dispute
        EdgeSeed(**{**fields, "view": bytes(32)}, peer=0, seed=seeds[0]),
    ):
        with pytest.raises(PeerError):
            server.receive(LIAR, fed.sign(LIAR, lie))
    with pytest.raises(PeerError, match="verify"):  # in the name of the honest end
        server.receive(0, fed.sign(LIAR, EdgeSeed(**{**fields, "sender": 0}, peer=LIAR, seed=seeds[0])))
    assert server.outcome().named == ()


def test_answers_to_blame_that_were_not_asked_for():
    fed, secrets, _ = a_sketch_lie("not asked")
    server = BlameServer(server=fed.server, secrets=secrets)
    message = hostile.honest_values(fed, 0, BlameRequest(context=fed.config.context()).encode())
    values = BlameValues.decode(Envelope.decode(message).content)
    for sender, data in (
        (1, message),  # a copy of another's
        (7, message),
        (0, fed.sign(0, replace(values, edges=values.edges[1:]))),
        (0, fed.sign(0, replace(values, view=bytes(32)))),
        (0, fed.sign(0, replace(values, edges=(replace(values.edges[0], values=b""), *values.edges[1:])))),
        (0, fed.sign(1, values)),
        (0, b""),
    ):
        with pytest.raises(PeerError):
            server.receive(sender, data)
    server.receive(0, message)
    with pytest.raises(PeerError, match="second"):
        server.receive(0, message)


def test_a_rejected_member_answers_to_blame():
    fed = a_round("rejected answers", Phase.SKETCH)
    hostile.sketch(fed, LIAR, add=lonely(0, size=K))
    on(fed, accept=[0, 2, 3, 4])
    server = BlameServer(server=fed.server, secrets=fails_to_open(fed))
    true = BlameValues.decode(Envelope.decode(hostile.honest_values(fed, 0, BlameRequest(context=fed.config.context()).encode())).content)
    edges = tuple(hostile.EdgeValue(peer=peer, values=bytes(4 * K)) for peer in fed.server.accepted)
    with pytest.raises(PeerError):
        server.receive(1, fed.sign(1, replace(true, sender=1, edges=edges)))
    server.close_values()
    assert server.outcome().named == ()


# --- colluders whose lies cancel ---


def two_liars(name):
    return a_round(name, Phase.MASKED_INPUT, num_clients=8, num_corrupt=2)


def test_lies_of_two_that_cancel_are_harmless():
    fed = two_liars("cancel")
    add = np.random.default_rng(3).integers(-(1 << 28), 1 << 28, size=D)
    hostile.upload(fed, 2, add=add)
    hostile.upload(fed, 5, add=-add)
    assert not on(fed)
    assert np.array_equal(fed.open().total, fed.expected(range(8)))  # the very sum of honest members


def test_lies_that_cancel_in_the_sketches_too_show_what_was_uploaded_in_sum():
    fed = two_liars("cancel twice")
    add = np.random.default_rng(4).integers(-(1 << 10), 1 << 10, size=D)
    hostile.upload(fed, 2, add=add)
    hostile.deliver_all(fed)
    fed.advance()
    hostile.answer_all(fed)
    image = hostile.matrix_of(fed).product(add)
    hostile.sketch(fed, 5, add=image)  # the partner shows what the other one uploaded
    assert not on(fed)
    assert np.array_equal(fed.open().total, fed.expected(range(8)) + add)  # and it passed gate and rule as the partner's own


def test_a_lying_pair_of_which_one_is_rejected_is_caught_and_named():
    fed = two_liars("half of a pair")
    add = np.random.default_rng(5).integers(-(1 << 20), 1 << 20, size=D)
    hostile.upload(fed, 2, add=add)
    hostile.upload(fed, 5, add=-add)
    on(fed, accept=[0, 1, 2, 3, 4, 6, 7])
    secrets = fails_to_open(fed)
    _, outcome = hostile.blame(fed, secrets)
    hostile.check_named(fed, outcome.named, {2, 5})
    assert [one.index for one in outcome.named] == [2]


# --- messages that are not one's own, not of this round, or not messages ---


@pytest.mark.parametrize("phase", hostile.rounds.ORDER[:-1])
def test_copies_of_others_and_replays_of_ones_own(phase):
    fed = a_round("copies", phase)
    other_round = a_round("copies", phase, server_round=2)
    fed.deliver(0, fed.messages[phase][0])
    for message in (
        fed.messages[phase][0],  # another member's
        other_round.messages[phase][LIAR],  # one's own of another round
        fed.sign(LIAR, hostile.Consent(context=bytes(32), sender=LIAR, view=bytes(32), agreement=bytes(32))),  # another statement
        b"",
        fed.messages[phase][LIAR][:-1],
        fed.messages[phase][LIAR] + b"\0",
        Envelope(content=bytes(1 << 20), signature=bytes(64), attachment=bytes(1 << 16)).encode(),
    ):
        with pytest.raises(PeerError):
            fed.deliver(LIAR, message)
    content, signature = (getattr(Envelope.decode(fed.messages[phase][0]), name) for name in ("content", "signature"))
    relabelled = bytearray(content)
    relabelled[37:39] = LIAR.to_bytes(2, "big")  # another's words in one's own name
    resigned = fed.signers[LIAR].sign("fedsec/secagg/v1/sign-advert", bytes(relabelled))
    for one in (resigned, signature):
        try:
            fed.deliver(LIAR, Envelope(content=bytes(relabelled), signature=one).encode())
        except PeerError:
            continue
        raise AssertionError
    fed.deliver(LIAR, fed.messages[phase][LIAR])
    with pytest.raises(PeerError):
        fed.deliver(LIAR, fed.messages[phase][LIAR])


@pytest.mark.parametrize("size", [0, 4 * D - 4, 4 * D + 4, 4 * D - 1])
def test_uploads_of_another_length(size):
    fed = a_round("lengths", Phase.MASKED_INPUT)
    statement, _ = hostile.said(fed, Phase.MASKED_INPUT, LIAR, hostile.Input)
    with pytest.raises(PeerError, match="bytes of vector"):
        fed.deliver(LIAR, fed.sign(LIAR, statement, attachment=bytes(size)))


@pytest.mark.parametrize("size", [0, 4 * K - 4, 4 * K + 4, 4 * K + 1])
def test_sketches_of_another_length(size):
    fed = a_round("lengths", Phase.SKETCH)
    statement, _ = hostile.said(fed, Phase.SKETCH, LIAR, hostile.SketchStatement)
    raw = bytes(size)
    statement = replace(statement, commitment=hostile.sketch_commitment(statement.context, LIAR, bytes(32), raw))
    with pytest.raises(PeerError, match="another length"):
        fed.deliver(LIAR, fed.sign(LIAR, statement, attachment=hostile.SketchOpening(salt=bytes(32), sketch=raw).encode()))


# --- evidence: true ones, garbled ones, made-up ones ---


@pytest.fixture(scope="module")
def proofs():
    """One proof of each kind, with the round that it comes from."""
    made = {}
    fed = a_round("proof share", Phase.UNMASK)
    hostile.release(fed, LIAR, lambda given: [bytes([1]) * 32, *given[1:]])
    on(fed)
    made[EvidenceKind.SHARE] = fed, name_share_liars(fed.server)[0]
    fed = a_round("proof dealing", Phase.SHARE_KEYS)
    hostile.deal_secrets(fed, LIAR, bytes(32), fed.before[Phase.SHARE_KEYS][LIAR].mask_key)
    on(fed)
    made[EvidenceKind.DEALING] = fed, name_bad_dealers(fed.server, combine_secrets(fed.server)[1])[0]
    fed, secrets, residue = a_sketch_lie("proof edge")
    made[EvidenceKind.EDGE] = fed, hostile.blame(fed, secrets, say=shifted(fed, LIAR, 0, residue))[1].named[0]
    fed = a_round("proof sketch", Phase.SKETCH, num_clients=6)
    hostile.sketch(fed, LIAR, add=lonely(0, size=K))
    on(fed, accept=[0, 1, 3, 4])
    made[EvidenceKind.SKETCH] = fed, hostile.blame(fed, fails_to_open(fed))[1].named[0]
    return made


def named_by(evidence, members, **kwargs):
    """Who is named, or None; whatever else is raised than an error of ours is a defect."""
    try:
        return verify_evidence(evidence, members, **kwargs).index
    except FedsecError:
        return None


@pytest.mark.parametrize("kind", list(EvidenceKind))
def test_every_kind_of_evidence_convinces_from_bytes(proofs, kind):
    fed, named = proofs[kind]
    assert (named.index, named.kind) == (LIAR, kind)
    raw = named.evidence.encode()
    again = verify_evidence(Evidence.decode(raw), fed.members)
    assert (again.client_id, again.kind, again.reason) == (named.client_id, kind, named.reason)
    assert again.evidence.encode() == raw


@pytest.mark.parametrize("kind", list(EvidenceKind))
def test_no_flipped_byte_of_evidence_is_taken(proofs, kind):
    fed, named = proofs[kind]
    raw, draw = named.evidence.encode(), np.random.default_rng(6)
    taken = []
    for place in range(0 if len(raw) < 3000 else int(draw.integers(3)), len(raw), 1 if len(raw) < 3000 else 3):
        flipped = bytearray(raw)
        flipped[place] ^= int(draw.choice([1, 2, 16, 128, 255]))
        try:
            evidence = Evidence.decode(bytes(flipped))
        except FedsecError:
            continue
        if named_by(evidence, fed.members, verify=fed.verify) is not None:
            taken.append(place)
    assert taken == []


@pytest.mark.parametrize("kind", list(EvidenceKind))
def test_evidence_against_anybody_else_or_of_another_round_or_kind(proofs, kind):
    fed, named = proofs[kind]
    evidence = named.evidence
    for accused in set(range(8)) - {LIAR}:
        swapped = tuple(accused if sender == LIAR else sender for sender in evidence.senders)
        for senders in (evidence.senders, swapped):
            assert named_by(replace(evidence, accused=accused, senders=senders), fed.members) is None
    for other in set(EvidenceKind) - {kind}:
        assert named_by(replace(evidence, kind=int(other)), fed.members) is None
    assert named_by(replace(evidence, kind=9), fed.members) is None
    for change in ({"attempt": 2}, {"server_round": 2}, {"num_rows": 8}, {"nonce_commitment": bytes(32)}):
        assert named_by(replace(evidence, config=replace(evidence.config, **change)), fed.members) is None
    shuffled = (fed.members[1], fed.members[0], *fed.members[2:])
    assert named_by(evidence, fed.members[:-1]) is None
    moved = list(fed.members)
    moved[LIAR], moved[0] = moved[0], moved[LIAR]
    assert named_by(evidence, moved) is None
    assert named_by(evidence, shuffled) in (None, LIAR)


@pytest.fixture(scope="module")
def innocent():
    """A round that failed by member 3's lie, with member 5 in D: all that a malicious server has against members 0, 1, 2 and 4."""
    fed = a_round("innocent", Phase.SKETCH, num_clients=6)
    hostile.sketch(fed, LIAR, add=lonely(0, size=K))
    on(fed, accept=[0, 1, 2, 3, 4])
    secrets = fails_to_open(fed)
    server, outcome = hostile.blame(fed, secrets)
    assert [one.index for one in outcome.named] == [LIAR]
    return fed, server, secrets


def test_the_true_round_proves_nothing_against_the_honest(innocent):
    fed, server, _ = innocent
    for accused in (0, 1, 2, 4):
        assert named_by(server._sketch_evidence(accused), fed.members) is None
        for owner in set(range(6)) - {accused}:
            assert named_by(_share_case(fed, accused, owner), fed.members) is None
        for peer in set(fed.server.accepted) - {accused}:
            assert named_by(_edge_case(fed, server, accused, peer), fed.members) is None
        assert named_by(_dealing_case(fed, accused), fed.members) is None
    assert named_by(_dealing_case(fed, 5), fed.members) is None  # rejected, its key is open


def _share_case(fed, accused, owner, **changes):
    server = fed.server
    statement = server.released[accused].statement
    place = sorted(server.dealings).index(owner)
    fields = {
        "kind": 1, "accused": accused, "config": fed.config, "senders": (accused, owner),
        "statements": (bare(server.released[accused].envelope), bare(server.dealings[owner].envelope)),
        "leaves": (proven_leaf(server, owner, accused),), "accepted": server.accepted,
        "shares": (ShownShare(holder=accused, share=statement.shares[place]),), "view": (view_opening(server),),
    }  # fmt: skip
    return Evidence(**{**fields, **changes})


def _edge_case(fed, blame, accused, peer, **changes):
    server = fed.server
    seed = {edge.peer: edge.seed for edge in fed.before[Phase.SKETCH][accused].holdings.edges}[peer]
    fields = {
        "kind": 3, "accused": accused, "config": fed.config, "senders": (accused, accused),
        "statements": (bare(blame.values[accused][1]), bare(server.dealings[accused].envelope)),
        "leaves": (proven_leaf(server, accused, peer),), "secret": seed, "view": (view_opening(server),),
    }  # fmt: skip
    return Evidence(**{**fields, **changes})


def _dealing_case(fed, accused, **changes):
    server, threshold = fed.server, fed.config.threshold
    holders = sorted(server.released)[:threshold]
    fields = {
        "kind": 2, "accused": accused, "config": fed.config, "senders": (accused, accused),
        "statements": (bare(server.adverts[accused][1]), bare(server.dealings[accused].envelope)),
        "leaves": tuple(proven_leaf(server, accused, holder) for holder in holders),
        "shares": tuple(ShownShare(holder=holder, share=server.released[holder].shares[accused]) for holder in holders),
    }  # fmt: skip
    return Evidence(**{**fields, **changes})


def test_a_share_case_with_another_share_place_leaf_kind_view_or_set(innocent):
    fed, _, _ = innocent
    server, accused = fed.server, 1
    shares, order, view = server.released[accused].statement.shares, sorted(server.dealings), view_opening(server)
    tried = 0
    for owner, shown, leaf_of, receiver in itertools.product(order, order, order, order):
        # any share of its statement, with any leaf of any dealer
        leaf = proven_leaf(server, leaf_of, receiver)
        for leaf_ in (leaf, replace(leaf, leaf=replace(leaf.leaf, receiver=accused))):
            case = _share_case(
                fed, accused, owner, shares=(ShownShare(holder=accused, share=shares[shown]),), leaves=(leaf_,),
                statements=(bare(server.released[accused].envelope), bare(server.dealings[leaf_of].envelope)),
            )  # fmt: skip
            assert named_by(case, fed.members, verify=fed.verify) is None
            tried += 1
    assert tried > 2000
    for owner in order:
        for accepted in ((), tuple(order), server.accepted[1:], (*server.accepted, 5)):
            if accepted != server.accepted:
                assert named_by(_share_case(fed, accused, owner, accepted=accepted), fed.members) is None
        for dealings in (
            (view.dealings[1], view.dealings[0], *view.dealings[2:]),  # in another order the places are others'
            (view.dealings[0], *view.dealings),
            view.dealings[1:],
            (*view.dealings, view.dealings[-1]),
        ):
            for shown in order:
                forged = copy.copy(view)
                object.__setattr__(forged, "dealings", dealings)
                case = _share_case(fed, accused, owner, shares=(ShownShare(holder=accused, share=shares[shown]),))
                object.__setattr__(case, "view", (forged,))
                assert _named_from_bytes(case, fed.members) is None


def _named_from_bytes(evidence, members):
    try:
        return verify_evidence(Evidence.decode(evidence.encode()), members).index
    except FedsecError:
        return None


def test_a_colluding_dealer_signs_a_second_dealing_to_frame_a_holder(innocent):
    fed, _, _ = innocent
    victim, dealer = 1, LIAR
    leaves = [replace(leaf, seed_share_hash=bytes(32), key_share_hash=bytes(32)) for leaf in fed.server.dealings[dealer].leaves.values()]
    statement = Dealing(context=fed.config.context(), sender=dealer, root=hostile.merkle_root(leaf_hashes(leaves)))
    second = Envelope.decode(fed.sign(dealer, statement))
    leaf = ProvenLeaf(place=victim, size=6, leaf=leaves[victim], path=inclusion_proofs(leaf_hashes(leaves))[victim])
    view = view_opening(fed.server)
    for shown in (
        view,
        replace(view, dealings=tuple(second.content if place == dealer else one for place, one in enumerate(view.dealings))),
    ):
        case = _share_case(
            fed, victim, dealer, leaves=(leaf,), statements=(bare(fed.server.released[victim].envelope), second), view=(shown,)
        )  # fmt: skip
        assert named_by(case, fed.members) is None


@pytest.mark.parametrize("place", [LIAR, 0, 4])
def test_a_colluding_dealer_puts_a_second_leaf_for_its_victim_at_another_place_of_its_tree(place):
    # One tree, one root, one view. At the victim's place stands the true leaf; at a place that the victim never looks at, another one for it.
    victim = 1
    fed = a_round(f"two leaves {place}", Phase.SHARE_KEYS)
    true = {}

    def change(leaf):
        true[leaf.receiver] = leaf
        return leaf

    hostile.deal(fed, LIAR, change)
    false = replace(true[victim], seed_share_hash=bytes(32), key_share_hash=bytes(32), tag=true[place].tag)
    hostile.deal(fed, LIAR, lambda leaf: false if leaf.receiver == place else None)
    assert LIAR in hostile.deliver_all(fed)  # an honest server demands one leaf for each member of U1, in order
    envelope = Envelope.decode(fed.messages[Phase.SHARE_KEYS][LIAR])
    leaves = DealtLeaves.decode(envelope.attachment).leaves
    fed.server.dealings[LIAR] = Dealt(envelope=envelope, statement=Dealing.decode(envelope.content), leaves=dict(enumerate(leaves)))
    fed.advance()
    absent = {Phase.MASKED_INPUT: [place]} if place != LIAR else None
    fed.run(absent=absent)
    assert fed.server.released[victim].shares[LIAR]
    proof = ProvenLeaf(place=place, size=5, leaf=false, path=inclusion_proofs(leaf_hashes(leaves))[place])
    assert named_by(_share_case(fed, victim, LIAR, leaves=(proof,)), fed.members) is None


def test_a_sketch_case_with_a_mask_left_out_put_in_or_changed(innocent):
    fed, blame, _ = innocent
    server, victim = fed.server, 1
    true = blame._sketch_evidence(victim)
    (opened,) = true.keys
    view = view_opening(server)
    other_key = bytes([5]) * 31 + b"\1"
    colluder = replace(server.adverts[5][0], mask_key=PrivateKey(other_key).public_key)  # member 5 signs a second advert
    second = Envelope.decode(fed.sign(5, colluder))
    for keys in (
        (),  # a rejected member's key is left out
        (opened, opened),
        (OpenedKey(advert=opened.advert, key=other_key),),
        (OpenedKey(advert=bare(server.adverts[3][1]), key=opened.key),),
        (OpenedKey(advert=second, key=other_key),),
    ):
        for accepted in (true.accepted, (*true.accepted, 5), tuple(set(true.accepted) - {0}), (victim,)):
            assert named_by(replace(true, keys=keys, accepted=accepted), fed.members) is None
    adverts = (*view.adverts[:5], second.content)
    for shown in (
        replace(view, removed=(RemovedEdge(low=victim, high=5),)),  # wrong removed edges
        replace(view, removed=(RemovedEdge(low=0, high=victim),)),
        replace(view, dealings=view.dealings[:5]),  # wrong U2
        replace(view, matrix_seed=bytes(32)),  # wrong R
        replace(view, group=bytes(32)),
        replace(view, adverts=adverts),
    ):
        for keys in (true.keys, (), (OpenedKey(advert=second, key=other_key),)):
            assert named_by(replace(true, view=(shown,), keys=keys), fed.members) is None
    assert named_by(replace(true, view=()), fed.members) is None
    assert named_by(replace(true, view=(view, view)), fed.members) is None
    assert named_by(replace(true, secret=bytes(32)), fed.members) is None
    vector = Envelope.decode(fed.messages[Phase.MASKED_INPUT][victim])
    garbled = replace(vector, attachment=bytes(4) + vector.attachment[4:])
    opening = Envelope.decode(fed.messages[Phase.SKETCH][victim])
    changed = replace(opening, attachment=opening.attachment[:-1] + bytes([opening.attachment[-1] ^ 1]))
    for place, envelope in ((1, garbled), (2, changed), (1, bare(vector)), (2, bare(opening)), (2, server.sketches[0].envelope)):
        statements = tuple(envelope if index == place else one for index, one in enumerate(true.statements))
        assert named_by(replace(true, statements=statements), fed.members) is None


def test_statements_of_two_rounds_are_not_mixed(innocent):
    # The same members, keys and seeds, in the next round: every single statement swapped for its twin.
    fed, blame, _ = innocent
    twin = a_round("innocent", Phase.SKETCH, num_clients=6, server_round=2)
    on(twin, accept=[0, 1, 2, 3, 4])
    _, _ = (other := hostile.blame(twin, hostile.secrets_of(twin)))
    victim = 1
    here, there = blame._sketch_evidence(victim), other[0]._sketch_evidence(victim)
    for choice in itertools.product([0, 1], repeat=4):
        statements = tuple((here, there)[which].statements[place] for place, which in enumerate(choice))
        for one, view, keys, secret in itertools.product((here, there), (here.view, there.view), (here.keys, there.keys), (here, there)):
            case = replace(one, statements=statements, view=view, keys=keys, secret=secret.secret)
            assert named_by(case, fed.members, verify=fed.verify) is None
    case = _edge_case(fed, blame, victim, 0)
    for place in (0, 1):
        statements = list(case.statements)
        statements[place] = _edge_case(twin, other[0], victim, 0).statements[place]
        assert named_by(replace(case, statements=tuple(statements)), fed.members) is None


def test_edge_cases_of_another_seed_leaf_or_r(innocent):
    fed, blame, _ = innocent
    victim, view = 1, view_opening(fed.server)
    seeds = {edge.peer: edge.seed for edge in fed.before[Phase.SKETCH][victim].holdings.edges}
    for peer, leaf_for, seed_of in itertools.product((0, 2, 4), (0, 2, 4), (0, 2, 4)):
        case = _edge_case(fed, blame, victim, peer, leaves=(proven_leaf(fed.server, victim, leaf_for),), secret=seeds[seed_of])
        assert named_by(case, fed.members, verify=fed.verify) is None
    assert named_by(_edge_case(fed, blame, victim, 0, secret=bytes(32)), fed.members) is None
    assert named_by(_edge_case(fed, blame, victim, 0, view=(replace(view, matrix_seed=bytes(32)),)), fed.members) is None
    # The colluder's dealing with a tag of a seed that it likes, against the victim's value.
    leaf = proven_leaf(fed.server, LIAR, victim)
    case = _edge_case(
        fed, blame, victim, LIAR, leaves=(leaf,), senders=(victim, LIAR),
        statements=(bare(blame.values[victim][1]), bare(fed.server.dealings[LIAR].envelope)),
    )  # fmt: skip
    assert named_by(case, fed.members) is None


def test_dealing_cases_with_shares_of_both_kinds_or_of_others(innocent):
    fed, _, _ = innocent
    accused, threshold = 1, fed.config.threshold
    holders = sorted(fed.server.released)[:threshold]
    both = {holder: hostile.both_shares(fed, holder, accused) for holder in holders}
    assert threshold == 4
    for kinds in itertools.product([0, 1], repeat=threshold):  # seed share of some, key share of others
        shares = tuple(ShownShare(holder=holder, share=both[holder][kind]) for holder, kind in zip(holders, kinds, strict=True))
        assert named_by(_dealing_case(fed, accused, shares=shares), fed.members, verify=fed.verify) is None
    true = _dealing_case(fed, accused)
    assert named_by(replace(true, shares=true.shares[:3], leaves=true.leaves[:3]), fed.members) is None
    assert (
        named_by(replace(true, shares=(*true.shares[:3], true.shares[2]), leaves=(*true.leaves[:3], true.leaves[2])), fed.members) is None
    )
    wrong = (replace(true.shares[0], share=bytes([1]) * 32), *true.shares[1:])
    assert named_by(replace(true, shares=wrong), fed.members) is None
    assert named_by(replace(true, shares=(true.shares[1], true.shares[0], *true.shares[2:])), fed.members) is None
    # t shares at points that are not the holders' own
    moved = tuple(replace(share, holder=(share.holder + 1) % 6) for share in true.shares)
    assert named_by(replace(true, shares=moved), fed.members) is None


def test_a_signed_but_empty_or_absent_share_is_no_evidence(innocent):
    fed, _, _ = innocent
    statement = fed.server.released[1].statement
    emptied = Shares.decode(Envelope.decode(fed.sign(1, replace(statement, shares=(b"",) * 6))).content)
    assert set(emptied.shares) == {b""}
    fork = fed.fork()
    fork.server.phase, fork.server.released = Phase.UNMASK, {}
    fork.deliver(1, fork.sign(1, emptied))
    assert fork.server.released[1].lies == ()


# --- random liars ---


def test_two_hundred_rounds_of_random_liars_name_no_honest_member():
    ends, lies, named = Counter(), Counter(), 0
    for seed in range(200):
        outcome = hostile.soak(seed)  # raises where something is broken
        ends[outcome.end] += 1
        lies.update(outcome.lies)
        named += len(outcome.named)
    assert ends["opened"] > 50
    assert ends["named"] > 5
    assert ends["bad dealing"] > 1
    assert ends["unresolved"] > 5
    assert named > 20
    assert len(lies) > 35  # the liars lied in (nearly) all ways that they know


@pytest.mark.parametrize("what", ["the opening check", "the members' equations", "an honest name"])
def test_the_soak_sees_a_machine_that_is_broken(monkeypatch, what):
    # Or two hundred good rounds would say nothing.
    if what == "the opening check":
        monkeypatch.setattr("fedsec.secagg.opening.verify_opening", lambda *args: None)
    elif what == "the members' equations":
        monkeypatch.setattr(BlameServer, "_equation_holds", lambda self, member, *_: True)
    else:
        monkeypatch.setattr(hostile, "name_share_liars", lambda server: (_shifted_name(server),) if name_share_liars(server) else ())
    with pytest.raises(hostile.Broken):
        for seed in range(200):
            hostile.soak(seed)


def _shifted_name(server):
    (first, *_) = name_share_liars(server)
    return replace(first, index=(first.index + 1) % len(server.members))
