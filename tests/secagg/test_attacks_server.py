"""A malicious server, with up to c members that help it, against honest members: every story ends in a refusal, or in numbers that say nothing.

What a client must remember between messages (one context a round, UNMASK once over all attempts, the same answer to the same request) is
kept by its store and attacked there; here are the machines alone.
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
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedsec.errors import ConfigError, DecodeError, FedsecError, LocalProtocolError, PeerError, RoundAborted
from fedsec.secagg import client_keys, opening
from fedsec.secagg.checks import read_config
from fedsec.secagg.cohorts import shamir_threshold
from fedsec.secagg.config import LocalPolicy, Member
from fedsec.secagg.labels import Phase, SignLabel
from fedsec.secagg.masking import apply_masks, mask_words, pair_mask_key
from fedsec.secagg.messages import (
    Advert,
    BlameRequest,
    BlameValues,
    Consent,
    ConsistencyRequest,
    EdgeSeed,
    Envelope,
    MaskedInputRequest,
    MemberSignature,
    RemovedEdge,
    ShareKeysRequest,
    SignedPart,
    SketchRequest,
    UnmaskRequest,
)
from fedsec.secagg.server import Dealt, SketchMade, Uploaded
from fedsec.secagg.shamir import PRIME
from fedsec.secagg.views import agreement_digest, input_root


def _load(name):
    full = f"fedsec_tests_secagg_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, Path(__file__).with_name(f"{name}.py"))
        sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[full])
    return sys.modules[full]


hostile = _load("hostile")
Federation = hostile.Federation


def forge(record, **fields):
    """A record whose own checks are not asked."""
    forged = copy.copy(record)
    for name, value in fields.items():
        object.__setattr__(forged, name, value)
    return forged


def refuses(fed, phase, index, request, match=None):
    """The member refuses the request, and its state is what it was."""
    before = fed.states[index].encode()
    with pytest.raises(PeerError, match=match):
        fed.step(phase, index, request)
    assert fed.states[index].encode() == before


@pytest.fixture(scope="module")
def at():
    """``at(phase)``: an honest round of five, c = 1, everybody asked in this phase; a copy for each test."""
    made = {}

    def get(phase):
        if phase not in made:
            made[phase] = Federation(num_clients=5, name="victims").run(phase)
        return made[phase].fork()

    return get


# --- CONFIG ---


@pytest.mark.parametrize(
    "fields",
    [{"threshold": 2}, {"threshold": 3}, {"num_corrupt": 0}, {"num_corrupt": 0, "threshold": 3}, {"minimum_accepted": 2},
     {"num_clients": 3, "threshold": 3}, {"norm_bound": 1 << 29}, {"norm_slack": 4.0}, {"attempt": 3}],
    ids=str,
)  # fmt: skip
def test_the_server_signs_a_config_with_a_lower_threshold_or_c(at, fields):
    fed = at(Phase.ADVERTISE_KEYS)
    content = forge(fed.config, **fields).encode()
    data = Envelope(content=content, signature=fed.server_signer.sign(SignLabel.CONFIG, content)).encode()
    with pytest.raises((DecodeError, ConfigError)):
        read_config(data, server_key=fed.server_signer.public_key, verify=fed.verify)


@pytest.mark.parametrize(
    "policy",
    [LocalPolicy(num_corrupt=2), LocalPolicy(minimum_cohort=6), LocalPolicy(honest_minimum=3), LocalPolicy(sketches_allowed=False),
     LocalPolicy(maximum_rows=15)],
    ids=["c", "cohort", "honest", "no sketches", "rows"],
)  # fmt: skip
def test_a_sound_config_that_is_weaker_than_the_clients_own_policy(policy):
    # "Fill the cohort with your own": with more than c of them nothing holds, so how many there may be is the client's decision.
    fed = Federation(policy=LocalPolicy())
    fed.policy = policy
    with pytest.raises(PeerError, match="server"):
        fed.step(Phase.ADVERTISE_KEYS, 0, fed.signed_config)


def test_sybils_beyond_the_roster(at):
    fed = at(Phase.SHARE_KEYS)
    sybil = hostile.rounds.signer_of("sybil")
    # One more member than CONFIG says, and one identity on two seats.
    with pytest.raises(PeerError, match="roster has 6"):
        client_keys.join(
            fed.config, (*fed.members, Member(client_id="sybil", public_key=sybil.public_key)), 0,
            policy=fed.policy, weight=1, signer=fed.signers[0], randomness=bytes(96),
        )  # fmt: skip
    with pytest.raises(PeerError, match="twice"):
        client_keys.join(
            fed.config, (*fed.members[:4], replace(fed.members[3], client_id="sybil")), 0,
            policy=fed.policy, weight=1, signer=fed.signers[0], randomness=bytes(96),
        )  # fmt: skip
    # An advert of a sixth member, and a seat's advert under the sybil's signature.
    request = ShareKeysRequest.decode(fed.requests[Phase.SHARE_KEYS][0])
    advert, _ = hostile.said(fed, Phase.ADVERTISE_KEYS, 4, Advert)
    for forged, places, match in ((replace(advert, sender=5), request.adverts, "unknown"), (advert, request.adverts[:4], "verify")):
        content = forged.encode()
        part = SignedPart(content=content, signature=sybil.sign(SignLabel.ADVERT, content))
        refuses(fed, Phase.SHARE_KEYS, 0, replace(request, adverts=(*places, part)).encode(), match)


# --- adverts ---


@pytest.mark.parametrize(
    "story", ["unsigned", "swapped", "of another round", "twice", "out of order", "own left out", "own changed", "too few"]
)
def test_the_server_shows_adverts_that_are_not_what_was_signed(at, story):
    fed = at(Phase.SHARE_KEYS)
    request = ShareKeysRequest.decode(fed.requests[Phase.SHARE_KEYS][0])
    a = list(request.adverts)
    match story:
        case "unsigned":
            a[2] = replace(a[2], signature=bytes(64))
        case "swapped":
            a[2], a[3] = replace(a[2], signature=a[3].signature), replace(a[3], signature=a[2].signature)
        case "of another round":
            other = Federation(num_clients=5, name="victims", run_id="run-0").run(Phase.SHARE_KEYS)
            a[2] = ShareKeysRequest.decode(other.requests[Phase.SHARE_KEYS][0]).adverts[2]
        case "twice":
            a.insert(3, a[2])
        case "out of order":
            a[2], a[3] = a[3], a[2]
        case "own left out":
            del a[0]
        case "own changed":  # the member's identity key signs nothing twice, but a thief of it might
            mine, _ = hostile.said(fed, Phase.ADVERTISE_KEYS, 0, Advert)
            changed = Envelope.decode(fed.sign(0, replace(mine, mask_key=bytes([9]) + bytes(31))))
            a[0] = SignedPart(content=changed.content, signature=changed.signature)
        case "too few":
            del a[3:]
    refuses(fed, Phase.SHARE_KEYS, 0, replace(request, adverts=tuple(a)).encode())


LOW_ORDER = 325606250916557431795983626356110631294008115727848805560023387167927233504


@pytest.mark.parametrize("value", [0, 1, PRIME - 1, LOW_ORDER, PRIME, PRIME + 9, 9 | 1 << 255], ids=str)
@pytest.mark.parametrize("which", ["mask_key", "box_key"])
def test_a_colluder_advertises_a_key_of_small_order_or_in_another_spelling(at, value, which):
    fed = at(Phase.ADVERTISE_KEYS)
    hostile.answer_all(fed)
    hostile.advertise(fed, 4, **{which: value.to_bytes(32, "little")})
    assert list(hostile.deliver_all(fed)) == [4]  # an honest server drops it
    request = ShareKeysRequest(context=fed.config.context(), adverts=tuple(_signed(fed, Phase.ADVERTISE_KEYS, index) for index in range(5)))
    refuses(fed, Phase.SHARE_KEYS, 0, request.encode(), "public key")


def _signed(fed, phase, index):
    envelope = Envelope.decode(fed.messages[phase][index])
    return SignedPart(content=envelope.content, signature=envelope.signature)


# --- copied keys and tags: decision 0010, findings 1 and 2 ---


def _unbound_seed(shared_secret, context, one, other):
    """The draft's derivation, before it bound the ends of the pair."""
    return HKDF(algorithm=SHA256(), length=32, salt=context, info=b"draft").derive(shared_secret)


@pytest.fixture(params=["bound", "draft"])
def derivation(request, monkeypatch):
    """The derivation as built, and the one of the first draft, with which the attack must work: or the test tests nothing."""
    if request.param == "draft":
        for module in (client_keys, opening):
            monkeypatch.setattr(module, "pair_seed", _unbound_seed)
        monkeypatch.setattr(client_keys, "repeated_keys", lambda adverts: frozenset())
    return request.param


def _round_with_a_copy(colluder, source, copied):
    """N = 4, c = 1: the colluder advertises the mask key of an honest member, and signs whatever tags its peers signed."""
    fed = Federation(num_clients=4, name="copies").run(Phase.ADVERTISE_KEYS)
    hostile.answer_all(fed)
    advert, _ = hostile.said(fed, Phase.ADVERTISE_KEYS, source, Advert)
    hostile.advertise(fed, colluder, mask_key=copied(advert.mask_key))
    for index in range(4):  # this server is in on it: it takes what an honest one refuses
        envelope = Envelope.decode(fed.messages[Phase.ADVERTISE_KEYS][index])
        fed.server.adverts[index] = (Advert.decode(envelope.content), envelope)
    fed.server.phase = Phase.SHARE_KEYS
    fed._ask()
    hostile.answer_all(fed)
    tags = {}
    for peer in set(range(4)) - {colluder}:
        leaves = hostile.DealtLeaves.decode(hostile.said(fed, Phase.SHARE_KEYS, peer, hostile.Dealing)[1]).leaves
        tags[peer] = leaves[colluder].tag
    hostile.deal(fed, colluder, lambda leaf: replace(leaf, tag=tags[leaf.receiver]) if leaf.receiver in tags else None)
    hostile.deliver_all(fed)
    fed.advance()
    assert fed.server.removed == ()  # the copied tags hide that there is no common seed
    return fed


def _inverse(key):
    """Another string with the same X25519 secrets: the point plus the one of order 2."""
    return pow(int.from_bytes(key, "little"), -1, PRIME).to_bytes(32, "little")


def _less_the_open_masks(fed, victim):
    """y of the victim without its self-mask and its masks with D: what is left are its pair masks within A."""
    vector = fed.server.inputs[victim].vector.copy()
    secrets = hostile.secrets_of(fed)
    opening.remove_masks(vector, fed.server, secrets, [victim], opening.opened_edges(fed.server, secrets))
    return vector


def _right(guess, fed, victim):
    """How many coordinates, and how many parities, are right."""
    truth = fed.encoded[victim].astype(np.uint32)
    return int(np.sum(guess == truth)), int(np.sum((guess ^ truth) & 1 == 0))


@pytest.mark.parametrize("copied", [bytes, _inverse], ids=["copy", "inverse"])
def test_a_colluder_copies_an_honest_mask_key_so_that_two_masks_cancel(derivation, copied):
    # j = 0 copies i = 2; h = 1 stands between them, so that it adds one mask and subtracts the other; A = {0, 1, 2} is a_min.
    victim, dimension = 1, 40
    if copied is bytes and derivation == "bound":
        with pytest.raises(PeerError, match="stands somewhere else"):
            _round_with_a_copy(0, 2, copied)
        return
    fed = _round_with_a_copy(0, 2, copied).run(accept=[0, 1, 2])
    right, parities = _right(_less_the_open_masks(fed, victim), fed, victim)
    if derivation == "draft":
        assert right == dimension
    else:
        assert right == 0
        assert dimension // 5 <= parities <= dimension - dimension // 5  # 20 by chance, of 40: within 3.8 deviations
        with pytest.raises(opening.OpeningFailed):  # and the round dies of the colluder's mask, which nobody can take off
            fed.open()


def test_the_parity_leaks_in_the_draft_where_the_victim_is_at_the_end(derivation):
    # h = 0, j = 1, i = 2: both masks are added, and twice the same mask has no lowest bit.
    fed = _round_with_a_copy(1, 2, _inverse).run(accept=[0, 1, 2])
    right, parities = _right(_less_the_open_masks(fed, 0), fed, 0)
    assert right == 0
    assert parities == 40 if derivation == "draft" else 8 <= parities <= 32


def test_a_colluder_copies_a_key_and_has_the_seed_opened_in_blame(derivation):
    victim, colluder, copied = 0, 1, 2
    fed = _round_with_a_copy(colluder, copied, _inverse).run(accept=[0, 1, 2])
    blame = hostile.BlameServer(server=fed.server, secrets=hostile.secrets_of(fed))
    for index in (victim, colluder):
        message = hostile.honest_values(fed, index, BlameRequest(context=fed.config.context()).encode())
        if index == colluder:
            values = BlameValues.decode(Envelope.decode(message).content)
            message = fed.sign(index, hostile.add_to_edge(values, victim, 1))
        blame.receive(index, message)
    state = fed.states[victim]
    _, message = state.open_edge(hostile.open_request(blame, colluder), signer=fed.signers[victim], verify=fed.verify)
    seed = EdgeSeed.decode(Envelope.decode(message).content).seed
    guess = _less_the_open_masks(fed, victim)
    key = pair_mask_key(seed, fed.config.context())
    apply_masks(guess, subtracted=[key, key])  # the masks with j and with i, which were one in the draft
    right, _ = _right(guess, fed, victim)
    assert right == (40 if derivation == "draft" else 0)


def test_a_member_opens_at_most_c_edges_and_none_to_silence_or_to_an_equal_value(at):
    fed = Federation(num_clients=5, name="opens").run()
    blame = hostile.BlameServer(server=fed.server, secrets=hostile.secrets_of(fed))
    for index in range(5):
        message = hostile.honest_values(fed, index, BlameRequest(context=fed.config.context()).encode())
        if index in (1, 2):  # two liars, where c = 1
            values = BlameValues.decode(Envelope.decode(message).content)
            message = fed.sign(index, hostile.add_to_edge(values, 0, 1))
        blame.receive(index, message)

    def ask(state, request):
        return state.open_edge(request, signer=fed.signers[0], verify=fed.verify)

    with pytest.raises(PeerError, match="no differing value"):
        ask(fed.states[0], hostile.open_request(blame, 3))
    envelope = blame.values[1][1]
    for part in (
        SignedPart(content=envelope.content, signature=bytes(64)),  # "it signed another value": it did not
        SignedPart(content=blame.values[0][1].content, signature=blame.values[0][1].signature),  # one's own values
        SignedPart(content=replace(blame.values[1][0], edges=()).encode(), signature=envelope.signature),
    ):
        with pytest.raises(PeerError):
            ask(fed.states[0], hostile.OpenEdgeRequest(context=fed.config.context(), peer_values=part).encode())
    without = replace(blame.values[1][0], edges=())  # signed, but with no value for this edge: silence
    signed = Envelope.decode(fed.sign(1, without))
    part = SignedPart(content=signed.content, signature=signed.signature)
    with pytest.raises(PeerError, match="no differing value"):
        ask(fed.states[0], hostile.OpenEdgeRequest(context=fed.config.context(), peer_values=part).encode())
    for change in ({"view": bytes(32)}, {"agreement": bytes(32)}):  # true signatures, of another view of the round
        signed = Envelope.decode(fed.sign(1, replace(blame.values[1][0], **change)))
        part = SignedPart(content=signed.content, signature=signed.signature)
        with pytest.raises(PeerError, match="another view"):
            ask(fed.states[0], hostile.OpenEdgeRequest(context=fed.config.context(), peer_values=part).encode())
    state, _ = ask(fed.states[0], hostile.open_request(blame, 1))
    ask(state, hostile.open_request(blame, 1))  # the same one again
    with pytest.raises(PeerError, match="opened before"):
        ask(state, hostile.open_request(blame, 2))


# --- another U2, another list of removed edges, another R ---


def _inject_input(fed, index):
    """The server takes an upload that an honest one refuses."""
    envelope = Envelope.decode(fed.messages[Phase.MASKED_INPUT][index])
    statement = hostile.Input.decode(envelope.content)
    vector = np.frombuffer(envelope.attachment, dtype="<u4").astype(np.uint32)
    fed.server.inputs[index] = Uploaded(envelope=envelope, statement=statement, vector=vector)


def _inject_sketch(fed, index):
    envelope = Envelope.decode(fed.messages[Phase.SKETCH][index])
    opened = hostile.SketchOpening.decode(envelope.attachment)
    fed.server.sketches[index] = SketchMade(
        envelope=envelope, statement=hostile.SketchStatement.decode(envelope.content),
        sketch=np.frombuffer(opened.sketch, dtype="<i4").astype(np.int32), salt=opened.salt,
    )  # fmt: skip


def _nobody_accepts_with(fed, victim):
    """Whoever is asked to consent to the victim in A refuses; without it the round ends, and no share of the victim's b is out."""
    fed.advance()
    assert victim in fed.server.accepted
    for index in fed.server.asked():
        refuses(fed, Phase.CONSISTENCY_CHECK, index, fed.requests[Phase.CONSISTENCY_CHECK][index])
    # Without its consent the victim can still be put into D: then its mask key opens, its b never.
    fed.server.phase = Phase.SKETCH
    fed.server.decide([index for index in sorted(fed.server.sketches) if index != victim])
    fed._ask()
    others = [index for index in fed.server.asked() if index != victim]
    for phase in (Phase.CONSISTENCY_CHECK, Phase.UNMASK):
        refuses(fed, phase, victim, fed.requests[phase][victim])
        for index in others:
            fed.answer(index)
            fed.deliver(index, fed.messages[phase][index])
        fed.advance()
    sealed = {hostile.both_shares(fed, index, victim)[0] for index in others}
    assert not any(share in sealed for released in fed.server.released.values() for share in released.shares.values())
    assert np.array_equal(fed.open().total, fed.expected(fed.server.accepted))


def test_the_server_shows_the_victim_another_u2():
    fed = Federation(num_clients=6, name="another U2").run(Phase.MASKED_INPUT)
    victim, hidden = 0, 5
    request = MaskedInputRequest.decode(fed.requests[Phase.MASKED_INPUT][victim])
    fewer = replace(request, dealt=tuple(part for part in request.dealt if part.sender != hidden))
    hostile.answer_all(fed, absent={victim, hidden})  # who is hidden does not upload: else the victim refuses the inputs at once
    fed.answer(victim, fewer.encode())
    assert hostile.deliver_all(fed).keys() == {victim}  # an honest server sees it by the view
    _inject_input(fed, victim)
    fed.advance()
    for index in fed.server.asked():
        fed.answer(index)
        if index != victim:
            fed.deliver(index, fed.messages[Phase.SKETCH][index])
    _inject_sketch(fed, victim)
    _nobody_accepts_with(fed, victim)


def test_too_small_a_u2_and_one_of_members_that_never_advertised(at):
    fed = at(Phase.MASKED_INPUT)
    request = MaskedInputRequest.decode(fed.requests[Phase.MASKED_INPUT][0])
    refuses(fed, Phase.MASKED_INPUT, 0, replace(request, dealt=request.dealt[:3]).encode(), "3 members dealt, 4")
    refuses(fed, Phase.MASKED_INPUT, 0, replace(request, dealt=request.dealt[1:]).encode(), "own dealing")
    stranger = (*request.dealt[:4], replace(request.dealt[4], sender=7))
    refuses(fed, Phase.MASKED_INPUT, 0, replace(request, dealt=stranger).encode(), "did not advertise")
    twice = forge(request, dealt=(*request.dealt, request.dealt[4]))
    refuses(fed, Phase.MASKED_INPUT, 0, twice.encode(), "increasing")
    swapped = list(request.dealt)  # member 3's leaf in member 4's place
    swapped[4] = replace(swapped[4], leaf=swapped[3].leaf, path=swapped[3].path)
    refuses(fed, Phase.MASKED_INPUT, 0, replace(request, dealt=tuple(swapped)).encode(), "leaf")


def test_a_colluding_dealer_puts_a_leaf_for_another_receiver_in_the_victims_place():
    fed = Federation(num_clients=5, name="misplaced").run(Phase.SHARE_KEYS)
    hostile.answer_all(fed)
    leaves = hostile.DealtLeaves.decode(hostile.said(fed, Phase.SHARE_KEYS, 4, hostile.Dealing)[1]).leaves
    hostile.deal(fed, 4, lambda leaf: replace(leaf, receiver=1) if leaf.receiver == 0 else None)
    assert list(hostile.deliver_all(fed)) == [4]  # an honest server drops it
    envelope = Envelope.decode(fed.messages[Phase.SHARE_KEYS][4])
    placed = dict(enumerate(hostile.DealtLeaves.decode(envelope.attachment).leaves))
    fed.server.dealings[4] = Dealt(envelope=envelope, statement=hostile.Dealing.decode(envelope.content), leaves=placed)
    fed.advance()
    assert placed[0].box == leaves[0].box
    refuses(fed, Phase.MASKED_INPUT, 0, fed.requests[Phase.MASKED_INPUT][0], "another receiver")


@pytest.fixture(scope="module")
def with_a_removed_edge():
    """Member 4 signed a tag of its own for the edge with member 0."""
    fed = Federation(num_clients=5, name="removed").run(Phase.SHARE_KEYS)
    hostile.answer_all(fed)
    hostile.deal(fed, 4, lambda leaf: replace(leaf, tag=bytes(32)) if leaf.receiver == 0 else None)
    hostile.deliver_all(fed)
    fed.advance()
    assert fed.server.removed == (RemovedEdge(low=0, high=4),)
    return fed


@pytest.mark.parametrize(
    ("index", "removed"),
    [(0, ()), (0, ((0, 3), (0, 4))), (0, ((0, 3),)), (4, ()), (1, ((0, 1), (0, 4))), (1, ((0, 4), (1, 2))), (1, ((0, 4), (0, 7))), (1, ((4, 0),))],
)  # fmt: skip
def test_the_server_cannot_invent_or_hide_a_removed_edge_of_a_member(with_a_removed_edge, index, removed):
    fed = with_a_removed_edge.fork()
    request = MaskedInputRequest.decode(fed.requests[Phase.MASKED_INPUT][index])
    forged = forge(request, removed=tuple(RemovedEdge(low=low, high=high) for low, high in removed))
    refuses(fed, Phase.MASKED_INPUT, index, forged.encode())


@pytest.mark.parametrize("removed", [(), ((0, 2), (0, 4)), ((0, 4), (2, 3))])
def test_the_server_splits_the_view_of_removed_edges_that_are_not_ones_own(with_a_removed_edge, removed):
    # Member 1 cannot check the edges of others; it is told another list, and has another view.
    fed = with_a_removed_edge.fork()
    victim = 1
    request = MaskedInputRequest.decode(fed.requests[Phase.MASKED_INPUT][victim])
    lists = tuple(RemovedEdge(low=low, high=high) for low, high in removed)
    hostile.answer_all(fed, absent={victim})
    fed.answer(victim, replace(request, removed=lists).encode())
    assert hostile.deliver_all(fed).keys() == {victim}
    _inject_input(fed, victim)
    fed.advance()
    hostile.answer_all(fed)
    assert hostile.deliver_all(fed).keys() == {victim}
    _inject_sketch(fed, victim)
    _nobody_accepts_with(fed, victim)


def test_over_c_removed_edges_and_the_member_sits_out():
    fed = Federation(num_clients=5, name="cut off").run(Phase.SHARE_KEYS)
    hostile.answer_all(fed)
    for index in (3, 4):  # two liars, where c = 1
        hostile.deal(fed, index, lambda leaf: replace(leaf, tag=bytes(32)) if leaf.receiver == 0 else None)
    hostile.deliver_all(fed)
    fed.advance()
    refuses(fed, Phase.MASKED_INPUT, 0, fed.requests[Phase.MASKED_INPUT][0], "over c = 1")


def test_the_server_shows_one_member_another_r():
    # R follows from the roots of all cohorts: of its own every member can check the root, of another cohort the server can invent one.
    feds = hostile.rounds.cohorts_of_a_group(2, name="two R", num_clients=5)
    servers = hostile.rounds.group(feds)
    hostile.rounds.run_group(feds, servers, Phase.SKETCH)
    fed, victim = feds[0], 2
    fed._ask()
    request = SketchRequest.decode(fed.requests[Phase.SKETCH][victim])
    hostile.answer_all(fed, absent={victim})
    fed.answer(victim, replace(request, cohort_roots=(request.cohort_roots[0], bytes(32))).encode())
    assert hostile.deliver_all(fed).keys() == {victim}
    split = fed.fork()
    _inject_sketch(split, victim)
    _nobody_accepts_with(split, victim)


@pytest.mark.parametrize(
    "story", ["other nonce", "own leaf changed", "own leaf missing", "input of a stranger", "root of other inputs", "more roots"]
)
def test_the_server_fixes_r_otherwise_than_from_the_uploads_and_its_nonce(at, story):
    fed = at(Phase.SKETCH)
    request = SketchRequest.decode(fed.requests[Phase.SKETCH][1])
    leaves, roots, nonce = list(request.inputs), request.cohort_roots, request.nonce
    match story:
        case "other nonce":  # a second R for the same upload
            nonce = bytes(32)
        case "own leaf changed":
            leaves[1] = replace(leaves[1], digest=bytes(32))
        case "own leaf missing":
            del leaves[1]
        case "input of a stranger":
            leaves.append(replace(leaves[4], sender=6))
        case "root of other inputs":
            leaves[3] = replace(leaves[3], digest=bytes(32))
        case "more roots":
            roots = (*roots, bytes(32))
    if story not in ("root of other inputs", "more roots", "other nonce"):
        roots = (input_root(fed.config.context(), {leaf.sender: leaf.digest for leaf in leaves}),)
    refuses(fed, Phase.SKETCH, 1, replace(request, inputs=tuple(leaves), cohort_roots=roots, nonce=nonce).encode())


def test_an_honest_server_fixes_r_once_and_from_its_own_nonce(at):
    fed = at(Phase.SKETCH)
    for nonce in (bytes(32), fed.nonce):
        with pytest.raises(LocalProtocolError):
            fed.server.open_nonce([fed.server.input_root()], nonce)
    with pytest.raises(LocalProtocolError):
        fed.server.open_nonce([bytes(32)], fed.nonce)


# --- the accepted and the rejected set, and their certificate ---

SETS = [
    ("A is the victim and the colluder", [0, 4], [1, 2, 3], "too few"),
    ("A is the victim", [0], [1, 2, 3, 4], "too few"),
    ("A and D overlap: both secrets of member 1", [0, 1, 2, 4], [1, 3], "each once"),
    ("A and D are all of U2 twice", [0, 1, 2, 3, 4], [0, 1, 2, 3, 4], "each once"),
    ("member 3 is in neither set", [0, 1, 2, 4], [], "each once"),
    ("D holds a stranger", [0, 1, 2, 3, 4], [7], "each once"),
    ("D holds a member twice", [0, 1, 2], [3, 3, 4], "increasing"),
    ("D is out of order", [0, 1, 2], [4, 3], "increasing"),
    ("A holds a member twice", [0, 0, 1, 2], [3, 4], "increasing"),
    ("A is out of order", [0, 2, 1], [3, 4], "increasing"),
]


@pytest.mark.parametrize(("accepted", "rejected", "match"), [case[1:] for case in SETS], ids=[case[0] for case in SETS])
@pytest.mark.parametrize("phase", [Phase.CONSISTENCY_CHECK, Phase.UNMASK])
def test_sets_that_do_not_fit_u2(at, phase, accepted, rejected, match):
    fed = at(phase)
    agreed = ConsistencyRequest.decode(fed.requests[Phase.CONSISTENCY_CHECK][0])
    parts = {part.sender: part for part in agreed.accepted}
    forged = forge(agreed, accepted=tuple(parts[index] for index in accepted), rejected=tuple(rejected))
    if phase is Phase.UNMASK:
        # Worst case: everybody's true signature under exactly these sets.
        digest = agreement_digest(fed.server.view, forged)
        statement = Consent(context=fed.config.context(), sender=0, view=fed.server.view, agreement=digest)
        signed = [Envelope.decode(fed.sign(index, replace(statement, sender=index))).signature for index in range(5)]
        certificate = tuple(MemberSignature(sender=index, signature=signature) for index, signature in enumerate(signed))
        forged = forge(
            UnmaskRequest.decode(fed.requests[phase][0]), accepted=forged.accepted, rejected=forged.rejected, certificate=certificate
        )  # fmt: skip
        fed.states[0] = fed.states[0].sketched  # it missed stage 5
    refuses(fed, phase, 0, forged.encode(), match)


def test_a_member_without_an_upload_in_a():
    fed = Federation(num_clients=5, name="absent").run(Phase.CONSISTENCY_CHECK, absent={Phase.MASKED_INPUT: [3]})
    agreed = ConsistencyRequest.decode(fed.requests[Phase.CONSISTENCY_CHECK][0])
    assert agreed.rejected == (3,)
    extra = sorted((*agreed.accepted, replace(agreed.accepted[0], sender=3)), key=lambda part: part.sender)
    refuses(fed, Phase.CONSISTENCY_CHECK, 0, replace(agreed, accepted=tuple(extra), rejected=()).encode(), "without an input")


@pytest.mark.parametrize("story", ["own sketch changed", "another's sketch changed", "another's signature", "of another round"])
def test_the_server_shows_sketches_that_were_not_made_under_this_view(at, story):
    fed = at(Phase.CONSISTENCY_CHECK)
    agreed = ConsistencyRequest.decode(fed.requests[Phase.CONSISTENCY_CHECK][0])
    parts = list(agreed.accepted)
    match story:
        case "own sketch changed":
            parts[0] = replace(parts[0], commitment=bytes(32))
        case "another's sketch changed":
            parts[1] = replace(parts[1], commitment=bytes(32))
        case "another's signature":
            parts[1] = replace(parts[1], signature=parts[2].signature)
        case "of another round":
            other = Federation(num_clients=5, name="victims", server_round=2).run(Phase.CONSISTENCY_CHECK)
            parts[1] = ConsistencyRequest.decode(other.requests[Phase.CONSISTENCY_CHECK][0]).accepted[1]
    refuses(fed, Phase.CONSISTENCY_CHECK, 0, replace(agreed, accepted=tuple(parts)).encode())


def test_an_honest_server_does_not_open_a_sum_of_too_few(at):
    fed = at(Phase.SKETCH)
    hostile.answer_all(fed)
    hostile.deliver_all(fed)
    with pytest.raises(RoundAborted, match="2 members are accepted, 3"):
        fed.server.decide([0, 1])
    assert fed.server.phase is Phase.ABORTED


@pytest.mark.parametrize(
    "story", ["one too few", "one twice", "of a stranger", "swapped", "of no member", "for other sets", "as another statement", "empty"]
)
def test_certificates_that_do_not_certify(at, story):
    fed = at(Phase.UNMASK)
    request = UnmaskRequest.decode(fed.requests[Phase.UNMASK][0])
    c = list(request.certificate)
    sets = {}
    match story:
        case "one too few":
            del c[3:]
        case "one twice":
            c[3:] = [c[2]]
        case "of a stranger":
            c[3:] = [replace(c[3], sender=9)]
        case "swapped":
            c[1], c[2] = replace(c[1], signature=c[2].signature), replace(c[2], signature=c[1].signature)
        case "of no member":
            c[1] = replace(c[1], signature=bytes(64))
        case "for other sets":  # everybody signed A = all; the server turns it on A without member 4
            sets = {"accepted": request.accepted[:4], "rejected": (4,)}
            fed.states[0] = fed.states[0].sketched
        case "as another statement":  # a signature under a sketch is none under a consent
            c[1] = replace(c[1], signature=request.accepted[1].signature)
        case "empty":
            c = []
    refuses(fed, Phase.UNMASK, 0, forge(request, certificate=tuple(c), **sets).encode())


def test_a_true_certificate_for_other_sets_than_the_member_signed(at):
    # It takes more liars than c, or members that were restored from a snapshot; who still remembers helps to none of it.
    fed = at(Phase.CONSISTENCY_CHECK)
    agreed = ConsistencyRequest.decode(fed.requests[Phase.CONSISTENCY_CHECK][0])
    other = replace(agreed, accepted=agreed.accepted[:4], rejected=(4,))
    certificate = tuple(
        MemberSignature(sender=index, signature=Envelope.decode(fed.step(Phase.CONSISTENCY_CHECK, index, other.encode())[1]).signature)
        for index in range(1, 5)
    )
    request = UnmaskRequest(context=other.context, accepted=other.accepted, rejected=other.rejected, certificate=certificate)
    fed.step(Phase.UNMASK, 0, request.encode())  # who signed nothing follows the certificate
    fed.answer(0)
    refuses(fed, Phase.UNMASK, 0, request.encode(), "other sets")


def test_the_server_collects_consent_for_two_sets(at):
    # Four honest members, one colluder that signs everything, t = 4: whatever the server does, one of the two certificates stays short.
    fed = at(Phase.CONSISTENCY_CHECK)
    agreed = ConsistencyRequest.decode(fed.requests[Phase.CONSISTENCY_CHECK][0])
    sets = {False: agreed, True: replace(agreed, accepted=agreed.accepted[1:], rejected=(0,))}
    for asked_second in itertools.product([False, True], repeat=4):
        certificates, states = {False: [], True: []}, {}
        for index, which in enumerate(asked_second):
            state, message = fed.step(Phase.CONSISTENCY_CHECK, index, sets[which].encode())
            states[index] = state
            certificates[which].append(MemberSignature(sender=index, signature=Envelope.decode(message).signature))
        for which, request in sets.items():
            statement = Consent(
                context=fed.config.context(), sender=4, view=fed.server.view, agreement=agreement_digest(fed.server.view, request)
            )  # fmt: skip
            certificates[which].append(MemberSignature(sender=4, signature=Envelope.decode(fed.sign(4, statement)).signature))
        answered = set()
        for which, request in sets.items():
            unmask = UnmaskRequest(
                context=request.context, accepted=request.accepted, rejected=request.rejected, certificate=tuple(certificates[which])
            )  # fmt: skip
            for index in range(4):
                try:
                    fed.step(Phase.UNMASK, index, unmask.encode(), state=states[index])
                    answered.add(which)
                except PeerError:
                    pass
        assert len(answered) <= 1
        assert len(answered) == (max(Counter(asked_second).values()) >= 3)  # three honest signatures and the colluder's


def test_two_certificates_two_secrets_and_two_attempts_in_numbers():
    for clients, corrupt in itertools.product(range(4, 200), range(1, 100)):
        threshold = shamir_threshold(clients, corrupt)
        if threshold > clients - corrupt:
            continue  # no drops are tolerated: refused
        honest, least = clients - corrupt, threshold - corrupt  # least: honest signatures in a certificate, honest shares of a secret
        assert 2 * least > honest  # two disjoint sets of them do not exist: one certificate, and never both secrets of one member
        assert threshold * 2 > clients + corrupt
        # Attempt 2 needs `least` members that did not answer UNMASK in attempt 1: then too few shares of attempt 1 are out.
        assert (honest - least) + corrupt < threshold


# --- requests of other rounds, and garbled ones ---


@pytest.mark.parametrize("phase", [Phase.SHARE_KEYS, Phase.MASKED_INPUT, Phase.SKETCH, Phase.CONSISTENCY_CHECK, Phase.UNMASK])
@pytest.mark.parametrize(
    "other", [{"run_id": "run-2"}, {"server_round": 2}, {"attempt": 2}, {"num_rows": 8}, {"roster_hash": bytes(32)}], ids=str
)
def test_a_request_of_another_round_attempt_or_config(at, phase, other):
    fed, elsewhere = at(phase), _elsewhere(phase, tuple(other.items()))
    refuses(fed, phase, 0, elsewhere.requests[phase][0])
    relabelled = bytearray(elsewhere.requests[phase][0])
    relabelled[5:37] = fed.config.context()
    refuses(fed, phase, 0, bytes(relabelled))


_ELSEWHERE = {}


def _elsewhere(phase, other):
    if (phase, other) not in _ELSEWHERE:
        _ELSEWHERE[phase, other] = Federation(num_clients=5, name="victims", **dict(other)).run(phase)
    return _ELSEWHERE[phase, other]


@pytest.mark.parametrize("phase", [Phase.SHARE_KEYS, Phase.MASKED_INPUT, Phase.SKETCH, Phase.CONSISTENCY_CHECK, Phase.UNMASK])
def test_no_garbled_request_is_taken_and_none_does_worse_than_a_refusal(at, phase):
    fed = at(phase)
    request = fed.requests[phase][0]
    draw = np.random.default_rng(7)
    places = [*range(48), *(int(place) for place in draw.integers(48, len(request), size=120))]
    for place in places:
        garbled = bytearray(request)
        garbled[place] ^= 1 << int(draw.integers(8))
        with pytest.raises(PeerError):
            fed.step(phase, 0, bytes(garbled))
    for size in {0, 4, 5, 36, 37, len(request) - 1, *(int(size) for size in draw.integers(len(request), size=20))}:
        with pytest.raises(PeerError):
            fed.step(phase, 0, request[:size])
    with pytest.raises(PeerError):
        fed.step(phase, 0, request + b"\0")
    for _ in range(30):
        with pytest.raises(PeerError):
            fed.step(phase, 0, request[:5] + draw.bytes(200))


def test_an_honest_server_survives_garbled_messages_of_members(at):
    draw = np.random.default_rng(8)
    for phase in hostile.rounds.ORDER[:-1]:
        fed = at(phase)
        message = fed.answer(0)
        for place in draw.integers(len(message), size=60):
            garbled = bytearray(message)
            garbled[int(place)] ^= 1 << int(draw.integers(8))
            with pytest.raises(PeerError):
                fed.deliver(0, bytes(garbled))
        for sender in (1, 5, -1, 1 << 40):  # another's message, and senders that do not exist
            with pytest.raises(PeerError):
                fed.deliver(sender, message)
        fed.deliver(0, message)
        with pytest.raises(PeerError, match="second"):
            fed.deliver(0, message)


# --- a false cry of BLAME ---


def test_a_false_cry_of_blame_tells_nothing_about_one_input():
    # Everything that the server has after BLAME of an opening that did not fail (uploads, self-masks, sketches, values of all edges, the
    # sum) is explained as well by other inputs: x of member 0 plus δ, of member 1 minus δ, for any δ that R does not see. The mask
    # that would have to be behind it has the same sketch modulo 2**32.
    fed = Federation(num_clients=5, name="false cry", num_rows=8).run(accept=[0, 1, 2, 3])
    assert np.array_equal(fed.open().total, fed.expected([0, 1, 2, 3]))  # nothing had failed
    context, secrets, matrix = fed.config.context(), hostile.secrets_of(fed), hostile.matrix_of(fed)
    delta = _unseen(matrix.entries(0, 8).astype(np.int64))
    assert delta.any()
    assert not matrix.product(delta).any()
    keys = {edge.peer: pair_mask_key(edge.seed, context) for edge in fed.before[Phase.SKETCH][0].holdings.edges}
    true_mask = mask_words(keys[1], 40)
    other_mask = true_mask - delta.astype(np.uint32)
    for member, sign, x in ((0, 1, fed.encoded[0] + delta), (1, -1, fed.encoded[1] - delta)):
        upload = fed.server.inputs[member].vector.copy()
        opening.remove_masks(upload, fed.server, secrets, [member], opening.opened_edges(fed.server, secrets))
        rest = {edge.peer: edge.seed for edge in fed.before[Phase.SKETCH][member].holdings.edges if edge.peer in (2, 3)}
        for peer, seed in rest.items():
            assert member < peer
            apply_masks(upload, subtracted=[pair_mask_key(seed, context)])
        explained = x.astype(np.uint32) + (other_mask if sign == 1 else -other_mask)
        assert np.array_equal(upload, explained)  # the same upload,
        sketch = fed.server.sketches[member].sketch
        assert np.array_equal(matrix.product(x), sketch)  # the same sketch,
    message = hostile.honest_values(fed, 0, BlameRequest(context=context).encode())
    (said,) = [edge.values for edge in BlameValues.decode(Envelope.decode(message).content).edges if edge.peer == 1]
    for mask in (true_mask, other_mask):
        assert matrix.ring_product(mask).astype("<u4").tobytes() == said  # and the same value of the edge
    # A rejected member says nothing at all: its self-mask is all that covers it.
    with pytest.raises(PeerError, match="not among the accepted"):
        hostile.honest_values(fed, 4, BlameRequest(context=context).encode())


def _unseen(entries):
    """A small integer vector that R sends to zero: two triples of coordinates with one sum."""
    seen = {}
    for triple in itertools.combinations(range(entries.shape[1]), 3):
        image = tuple(entries[:, triple].sum(axis=1))
        if image in seen and not set(seen[image]) & set(triple):
            delta = np.zeros(entries.shape[1], dtype=np.int64)
            delta[list(triple)], delta[list(seen[image])] = 1, -1
            return delta
        seen.setdefault(image, triple)
    raise AssertionError


@pytest.mark.parametrize(("over_integers", "same"), [(False, True), (True, False)])
def test_edge_values_modulo_the_ring_hide_what_integers_would_show(over_integers, same):
    # Decision 0010, finding 12, in the ring of 4 with every mask there is: three honest members, d = 2, R = (1, -1).
    def views(inputs):
        count = Counter()
        for flat in itertools.product(range(4), repeat=6):
            masks = {(0, 1): flat[:2], (0, 2): flat[2:4], (1, 2): flat[4:]}
            uploads = []
            for member in range(3):
                row = list(inputs[member])
                for (low, high), mask in masks.items():
                    if member in (low, high):
                        row = [(a + (m if member == low else -m)) % 4 for a, m in zip(row, mask, strict=True)]
                uploads.append(tuple(row))
            values = tuple(mask[0] - mask[1] if over_integers else (mask[0] - mask[1]) % 4 for mask in masks.values())
            count[tuple(uploads), values] += 1
        return count

    one, other = [(0, 0), (1, 1), (0, 0)], [(1, 1), (0, 0), (0, 0)]  # the same sum, and the same sketches: 0, 0, 0
    assert (views(one) == views(other)) is same


def test_everything_that_a_member_raises_is_an_error_of_ours(at):
    # A request must not reach code that was not made for it: states take requests of their own stage only.
    for phase, later in itertools.pairwise(hostile.rounds.ORDER[1:-1]):
        fed, next_one = at(phase), at(later)
        with pytest.raises(FedsecError):
            fed.step(phase, 0, next_one.requests[later][0])
