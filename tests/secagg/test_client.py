"""A client's phases against a server that sends anything: the right request is answered, everything else is refused and changes nothing."""

from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest

from fedsec.errors import FedsecError, LocalProtocolError, PeerError
from fedsec.merkle import inclusion_proofs, merkle_root
from fedsec.secagg.client import Consented, Ready, Sketched, Uploaded
from fedsec.secagg.client_blame import Unmasked
from fedsec.secagg.client_keys import Advertised, Dealt, deal_bytes, join
from fedsec.secagg.config import LocalPolicy
from fedsec.secagg.dealing import box_keys, leaf_hashes
from fedsec.secagg.keys import PrivateKey
from fedsec.secagg.labels import Phase
from fedsec.secagg.messages import (
    BlameRequest,
    BlameValues,
    CommittedSketch,
    Consent,
    ConsistencyRequest,
    Dealing,
    DealtLeaf,
    DealtLeaves,
    Envelope,
    Input,
    InputLeaf,
    MaskedInputRequest,
    MemberSignature,
    OpenEdgeRequest,
    RemovedEdge,
    ShareKeysRequest,
    Shares,
    SignedPart,
    SketchRequest,
    UnmaskRequest,
)
from fedsec.secagg.shamir import field_secret
from fedsec.secagg.views import agreement_digest, input_root, share_hash

ME = 1
"""The client under attack. Member 5 vanishes while it trains (U2 without U3), member 4 is rejected."""

STEPS = ("share_keys", "accept_dealings", "upload", "sketch", "consent", "unmask", "blame_values", "open_edge")
TAKES: dict[type, tuple[str, ...]] = {
    Advertised: ("share_keys",), Dealt: ("accept_dealings",), Ready: ("upload",), Uploaded: ("sketch",), Sketched: ("consent", "unmask"),
    Consented: ("unmask",), Unmasked: ("blame_values", "open_edge"),
}  # fmt: skip
WANTS = {
    "share_keys": "share_keys", "accept_dealings": "masked_input", "sketch": "sketch", "consent": "consistency_check",
    "unmask": "unmask", "blame_values": "blame", "open_edge": "blame_open",
}  # fmt: skip
REQUESTS: dict[Phase, Any] = {
    Phase.SHARE_KEYS: ShareKeysRequest, Phase.MASKED_INPUT: MaskedInputRequest, Phase.SKETCH: SketchRequest,
    Phase.CONSISTENCY_CHECK: ConsistencyRequest, Phase.UNMASK: UnmaskRequest,
}  # fmt: skip


@pytest.fixture(scope="module")
def fed(rounds: Any) -> Any:
    made = rounds.Federation(num_clients=6, name="client tests")
    made.run(Phase.UNMASK, absent={Phase.MASKED_INPUT: [5]}, accept=[0, 1, 2, 3])
    for index in made.server.asked():
        made.answer(index)
    return made


@pytest.fixture(scope="module")
def everything(fed: Any) -> dict[str, bytes]:
    """One request of every type, all of them sound for ``ME`` at their time."""
    blame = BlameRequest(context=fed.server.context).encode()
    values = BlameValues.decode(Envelope.decode(fed.states[2].blame_values(blame, signer=fed.signers[2])).content)
    lie = replace(values, edges=tuple(replace(edge, values=bytes(64)) if edge.peer == ME else edge for edge in values.edges))
    signed = Envelope.decode(fed.sign(2, lie))
    asked = {phase.value: fed.requests[phase][ME] for phase in REQUESTS}
    part = SignedPart(content=signed.content, signature=signed.signature)
    return {
        "config": fed.signed_config, **asked, "blame": blame,
        "blame_open": OpenEdgeRequest(context=fed.server.context, peer_values=part).encode(),
    }  # fmt: skip


@pytest.fixture(scope="module")
def states(fed: Any) -> dict[type, Any]:
    """``ME`` in each of its phases."""
    made = [fed.before[phase][ME] for phase in REQUESTS] + [fed.ready[ME], fed.states[ME], fed.before[Phase.CONSISTENCY_CHECK][ME]]
    return {type(state): state for state in made}


def call(fed: Any, state: Any, step: str, data: bytes) -> Any:
    signer, verify, config = fed.signers[ME], fed.verify, fed.config
    arguments: dict[str, dict[str, Any]] = {
        "share_keys": {"signer": signer, "verify": verify, "randomness": fed.draw("deal", ME, deal_bytes(config.threshold))},
        "accept_dealings": {"verify": verify}, "sketch": {"encoded": fed.encoded[ME], "signer": signer, "salt": fed.draw("salt", ME, 32)},
        "consent": {"signer": signer, "verify": verify}, "unmask": {"signer": signer, "verify": verify}, "blame_values": {"signer": signer},
        "open_edge": {"signer": signer, "verify": verify},
    }  # fmt: skip
    return getattr(state, step)(data, **arguments[step])


def refused(fed: Any, state: Any, step: str, data: bytes, match: str | None = None) -> PeerError:
    """The request is refused as the server's fault, and the phase is as it was."""
    before = state.encode()
    with pytest.raises(PeerError, match=match) as caught:
        call(fed, state, step, data)
    assert caught.value.client_id == "server"
    assert state.encode() == before
    return caught.value


# --- (a) each phase takes its own request, and no other ---


def test_each_phase_has_the_steps_of_its_stage_and_no_other(states: dict[type, Any]) -> None:
    assert states.keys() == TAKES.keys()
    for kind, steps in TAKES.items():
        assert [step for step in STEPS if hasattr(kind, step)] == list(steps)


def test_the_right_request_is_answered_and_every_other_is_refused(fed: Any, states: dict[type, Any], everything: dict[str, bytes]) -> None:
    for kind, steps in TAKES.items():
        state = states[kind]
        for step in steps:
            if step == "upload":
                continue
            for name, data in everything.items():
                before = state.encode()
                if WANTS[step] == name:
                    call(fed, state, step, data)
                else:
                    refused(fed, state, step, data)
                assert state.encode() == before


@pytest.mark.parametrize("data", [b"", b"fsa\x01", b"\0" * 64, b"fsa\x01" + b"\xff" * 64])
def test_noise_is_refused_in_every_phase(fed: Any, states: dict[type, Any], data: bytes) -> None:
    for kind, steps in TAKES.items():
        for step in steps:
            if step != "upload":
                refused(fed, states[kind], step, data)


def test_phases_are_frozen_values(states: dict[type, Any]) -> None:
    for kind, state in states.items():
        assert kind.decode(state.encode()) == state
        with pytest.raises(FrozenInstanceError):
            state.seat = None


@pytest.mark.parametrize("phase", REQUESTS)
def test_the_same_request_of_another_round_is_refused(rounds: Any, fed: Any, states: dict[type, Any], phase: Phase) -> None:
    """Round, attempt, run and every number enter the context: a request of the neighbouring round serves for nothing."""
    other = rounds.Federation(num_clients=6, name="client tests", server_round=2)
    other.run(Phase.UNMASK, absent={Phase.MASKED_INPUT: [5]}, accept=[0, 1, 2, 3])
    for index in other.server.asked():
        other.answer(index)
    state = fed.before[phase][ME]
    refused(fed, state, TAKES[type(state)][-1] if phase is Phase.UNMASK else TAKES[type(state)][0], other.requests[phase][ME])
    kind = REQUESTS[phase]
    renamed = replace(kind.decode(other.requests[phase][ME]), context=fed.server.context).encode()
    refused(fed, state, WANTED_STEP[phase], renamed)
    away = replace(kind.decode(fed.requests[phase][ME]), context=other.server.context).encode()
    refused(fed, state, WANTED_STEP[phase], away)


WANTED_STEP = {
    Phase.SHARE_KEYS: "share_keys", Phase.MASKED_INPUT: "accept_dealings", Phase.SKETCH: "sketch", Phase.CONSISTENCY_CHECK: "consent",
    Phase.UNMASK: "unmask",
}  # fmt: skip


# --- (b) every flipped byte ---


def flips(data: bytes) -> Any:
    for place in range(len(data)):
        yield place, data[:place] + bytes([data[place] ^ (1 << place * 5 % 8)]) + data[place + 1 :]


@pytest.mark.parametrize("phase", REQUESTS)
def test_every_flipped_byte_of_a_request_is_refused(fed: Any, phase: Phase) -> None:
    state = fed.before[phase][ME]
    for _, data in flips(fed.requests[phase][ME]):
        refused(fed, state, WANTED_STEP[phase], data)


def test_the_own_part_of_the_dealings_has_one_form(fed: Any) -> None:
    for change in ({"signature": bytes(64)}, {"leaf": b"junk"}, {"path": (bytes(32),)}):
        refused(
            fed, fed.before[Phase.MASKED_INPUT][ME], "accept_dealings", dealt(fed, _1=lambda part, change=change: replace(part, **change))
        )


def test_a_request_to_unmask_without_consent_is_as_strict(fed: Any) -> None:
    state = fed.before[Phase.CONSISTENCY_CHECK][ME]
    assert isinstance(state, Sketched)
    call(fed, state, "unmask", fed.requests[Phase.UNMASK][ME])
    for _, data in flips(fed.requests[Phase.UNMASK][ME]):
        refused(fed, state, "unmask", data)


def test_another_root_of_another_cohort_is_another_view_that_helps_to_nothing(rounds: Any) -> None:
    """What a client cannot check, the inputs of other cohorts, enters its view: it consents and unmasks with nobody then."""
    cohorts = rounds.cohorts_of_a_group(2, num_clients=4, name="two cohorts")
    servers = rounds.group(cohorts)
    rounds.run_group(cohorts, servers, Phase.SKETCH)
    mine = cohorts[0]
    rounds.run_group(cohorts, servers, Phase.UNMASK)
    request = mine.requests[Phase.SKETCH][ME]
    start = request.index(cohorts[1].server.cohort_roots[1])
    mine._ask()
    honest = mine.before[Phase.CONSISTENCY_CHECK][ME]
    views = set()
    for place, data in flips(request):
        if not start <= place < start + 32:
            refused(mine, mine.before[Phase.SKETCH][ME], "sketch", data)
            continue
        split, _ = call(mine, mine.before[Phase.SKETCH][ME], "sketch", data)
        views.add(split.view)
        refused(mine, split, "consent", mine.requests[Phase.CONSISTENCY_CHECK][ME], "changed|verify")
        refused(mine, split, "unmask", mine.requests[Phase.UNMASK][ME], "changed|verify")
    assert len(views) == 32
    assert honest.view not in views


# --- (c) what a server may try, stage by stage ---


def edit(fed: Any, phase: Phase, change: Callable[[Any], Any]) -> bytes:
    """The true request with a change that keeps its form."""
    made: bytes = change(REQUESTS[phase].decode(fed.requests[phase][ME])).encode()
    return made


def without(items: tuple[Any, ...], *places: int) -> tuple[Any, ...]:
    return tuple(item for place, item in enumerate(items) if place not in places)


def put(items: tuple[Any, ...], place: int, item: Any) -> tuple[Any, ...]:
    return (*items[:place], item, *items[place + 1 :])


def signed_part(fed: Any, index: int, statement: Any) -> SignedPart:
    envelope = Envelope.decode(fed.sign(index, statement))
    return SignedPart(content=envelope.content, signature=envelope.signature)


def advert_of(fed: Any, index: int, **changes: Any) -> SignedPart:
    """A member's advert, changed and signed again by that member."""
    return signed_part(fed, index, replace(fed.server.adverts[index][0], **changes))


def adverts(fed: Any, **changed: SignedPart) -> bytes:
    request = ShareKeysRequest.decode(fed.requests[Phase.SHARE_KEYS][ME])
    parts = request.adverts
    for place, part in changed.items():
        parts = put(parts, int(place[1:]), part)
    return replace(request, adverts=parts).encode()


SHARE_KEYS_ATTACKS: dict[str, tuple[str, Callable[[Any], bytes]]] = {
    "own_advert_missing": ("own advert", lambda f: edit(f, Phase.SHARE_KEYS, lambda r: replace(r, adverts=without(r.adverts, ME)))),
    "own_advert_resigned_with_other_weight": ("own advert", lambda f: adverts(f, _1=advert_of(f, ME, weight=1))),
    "u1_too_small": ("needed", lambda f: edit(f, Phase.SHARE_KEYS, lambda r: replace(r, adverts=r.adverts[:3]))),
    "u1_empty": ("own advert", lambda f: edit(f, Phase.SHARE_KEYS, lambda r: replace(r, adverts=()))),
    "out_of_order": ("order", lambda f: edit(f, Phase.SHARE_KEYS, lambda r: replace(r, adverts=r.adverts[::-1]))),
    "a_member_twice": ("order", lambda f: edit(f, Phase.SHARE_KEYS, lambda r: replace(r, adverts=(*r.adverts, r.adverts[-1])))),
    "swapped_signatures": (
        "verify",
        lambda f: edit(f, Phase.SHARE_KEYS, lambda r: replace(r, adverts=put(r.adverts, 0, replace(r.adverts[0], signature=r.adverts[2].signature)))),
    ),
    "signed_by_another_member": ("verify", lambda f: adverts(f, _0=signed_part(f, 2, f.server.adverts[0][0]))),
    "of_a_stranger": ("unknown", lambda f: adverts(f, _5=advert_of(f, 5, sender=6))),
    "of_another_context": ("another round", lambda f: adverts(f, _0=advert_of(f, 0, context=bytes(32)))),
    "another_statement": ("of type", lambda f: adverts(f, _0=signed_part(f, 0, Dealing(context=f.server.context, sender=0, root=bytes(32))))),
    "weight_over_the_cap": ("weight", lambda f: adverts(f, _0=advert_of(f, 0, weight=101))),
    "weight_zero": ("weight", lambda f: adverts(f, _0=advert_of(f, 0, weight=0))),
    "small_order_mask_key": ("small order", lambda f: adverts(f, _0=advert_of(f, 0, mask_key=bytes(32)))),
    "small_order_box_key": ("small order", lambda f: adverts(f, _0=advert_of(f, 0, box_key=b"\1" + bytes(31)))),
    "not_canonical_mask_key": ("canonical", lambda f: adverts(f, _0=advert_of(f, 0, mask_key=b"\xff" * 32))),
    "copied_mask_key": ("somewhere else", lambda f: adverts(f, _0=advert_of(f, 0, mask_key=f.server.adverts[2][0].mask_key))),
    "copied_own_box_key": ("somewhere else", lambda f: adverts(f, _0=advert_of(f, 0, box_key=f.server.adverts[ME][0].box_key))),
    "box_key_as_mask_key": ("somewhere else", lambda f: adverts(f, _0=advert_of(f, 0, mask_key=f.server.adverts[2][0].box_key))),
    "one_key_for_both": ("somewhere else", lambda f: adverts(f, _0=advert_of(f, 0, mask_key=f.server.adverts[0][0].box_key))),
}  # fmt: skip


@pytest.mark.parametrize("name", SHARE_KEYS_ATTACKS)
def test_adverts_that_are_not_u1_as_it_signed_are_refused(fed: Any, name: str) -> None:
    match, make = SHARE_KEYS_ATTACKS[name]
    refused(fed, fed.before[Phase.SHARE_KEYS][ME], "share_keys", make(fed), match)


def redeal(fed: Any, dealer: int, change: Callable[[DealtLeaf], DealtLeaf], *, of: int = ME) -> Any:
    """The dealer changes its leaf for a receiver and signs the new root: its part of the request."""
    leaves = [change(leaf) if leaf.receiver == of else leaf for leaf in fed.server.dealings[dealer].leaves.values()]
    dealing = Dealing(context=fed.server.context, sender=dealer, root=merkle_root(leaf_hashes(leaves)))
    part = MaskedInputRequest.decode(fed.requests[Phase.MASKED_INPUT][ME]).dealt[dealer]
    return replace(
        part, root=dealing.root, signature=signed_part(fed, dealer, dealing).signature, leaf=leaves[ME].encode(),
        path=inclusion_proofs(leaf_hashes(leaves))[ME],
    )  # fmt: skip


def dealt(fed: Any, *, removed: tuple[tuple[int, int], ...] = (), **changed: Any) -> bytes:
    request = MaskedInputRequest.decode(fed.requests[Phase.MASKED_INPUT][ME])
    parts = request.dealt
    for place, part in changed.items():
        parts = put(parts, int(place[1:]), part(parts[int(place[1:])]) if callable(part) else part)
    edges = tuple(RemovedEdge(low=low, high=high) for low, high in removed)
    return replace(request, dealt=parts, removed=edges).encode()


def other_tag(leaf: DealtLeaf) -> DealtLeaf:
    return replace(leaf, tag=bytes(32))


def garbled(part: Any) -> Any:
    leaf = DealtLeaf.decode(part.leaf)
    return replace(part, leaf=replace(leaf, box=leaf.box[:-1] + bytes([leaf.box[-1] ^ 1])).encode())


def leaf_of_another(fed: Any, dealer: int, receiver: int) -> Callable[[Any], Any]:
    """The leaf and the path of another receiver, both true."""
    leaves = list(fed.server.dealings[dealer].leaves.values())
    return lambda part: replace(part, leaf=leaves[receiver].encode(), path=inclusion_proofs(leaf_hashes(leaves))[receiver])


DEALING_ATTACKS: dict[str, tuple[str, Callable[[Any], bytes]]] = {
    "u2_too_small": ("needed", lambda f: edit(f, Phase.MASKED_INPUT, lambda r: replace(r, dealt=r.dealt[:3]))),
    "own_dealing_missing": ("own dealing", lambda f: edit(f, Phase.MASKED_INPUT, lambda r: replace(r, dealt=without(r.dealt, ME)))),
    "own_dealing_changed": ("own dealing", lambda f: dealt(f, _1=lambda part: replace(part, root=bytes(32)))),
    "own_dealing_is_another_it_signed": ("own dealing", lambda f: dealt(f, _1=redeal(f, ME, other_tag, of=0))),
    "leaf_of_another_receiver": ("not in the tree", lambda f: dealt(f, _0=leaf_of_another(f, 0, 2))),
    "signed_leaf_for_another_receiver": ("another receiver", lambda f: dealt(f, _0=redeal(f, 0, lambda leaf: replace(leaf, receiver=2)))),
    "garbled_box": ("not in the tree", lambda f: dealt(f, _0=garbled)),
    "leaf_left_out": ("tree", lambda f: dealt(f, _0=lambda part: replace(part, leaf=b""))),
    "path_cut": ("short", lambda f: dealt(f, _0=lambda part: replace(part, path=part.path[:-1]))),
    "path_longer": ("long", lambda f: dealt(f, _0=lambda part: replace(part, path=(*part.path, bytes(32))))),
    "root_of_another_dealer": ("verify", lambda f: dealt(f, _0=lambda part: replace(part, root=redeal(f, 0, other_tag).root))),
    "dealing_signed_by_another": ("verify", lambda f: dealt(f, _0=lambda part: replace(part, signature=redeal(f, 2, lambda leaf: leaf).signature))),
    "removed_though_tags_agree": ("differ", lambda f: dealt(f, removed=((0, 1),))),
    "removed_with_a_higher_peer_though_tags_agree": ("differ", lambda f: dealt(f, removed=((1, 4),))),
    "not_removed_though_tags_differ": ("differ", lambda f: dealt(f, _0=redeal(f, 0, other_tag))),
    "the_wrong_one_removed": ("differ", lambda f: dealt(f, _0=redeal(f, 0, other_tag), removed=((1, 2),))),
    "more_than_c_removed": ("over c", lambda f: dealt(f, _0=redeal(f, 0, other_tag), _2=redeal(f, 2, other_tag), removed=((0, 1), (1, 2)))),
    "an_edge_of_a_stranger": ("did not deal", lambda f: dealt(f, removed=((0, 6),))),
    "a_leaf_that_is_none": ("tree", lambda f: dealt(f, _0=lambda part: replace(part, leaf=b"\0" * 512))),
}  # fmt: skip


@pytest.mark.parametrize("name", DEALING_ATTACKS)
def test_dealings_that_are_not_those_of_u2_are_refused(fed: Any, name: str) -> None:
    match, make = DEALING_ATTACKS[name]
    refused(fed, fed.before[Phase.MASKED_INPUT][ME], "accept_dealings", make(fed), match)


def test_a_dealer_that_did_not_advertise_is_refused(rounds: Any) -> None:
    """U2 within U1: member 5 advertised to the server, which did not show it to the others, and dealt."""
    full = rounds.Federation(num_clients=6, name="u1").run(Phase.MASKED_INPUT)
    part = rounds.Federation(num_clients=6, name="u1")
    part.run(Phase.MASKED_INPUT, absent={Phase.ADVERTISE_KEYS: [5]})
    request = MaskedInputRequest.decode(part.requests[Phase.MASKED_INPUT][ME])
    more = MaskedInputRequest.decode(full.requests[Phase.MASKED_INPUT][ME]).dealt[5]
    refused(part, part.states[ME], "accept_dealings", replace(request, dealt=(*request.dealt, more)).encode(), "did not advertise")


def test_an_edge_whose_signed_tags_differ_is_removed_at_both_ends_and_nowhere_else(fed: Any) -> None:
    state = fed.before[Phase.MASKED_INPUT][ME]
    ready = call(fed, state, "accept_dealings", dealt(fed, _0=redeal(fed, 0, other_tag), removed=((0, 1), (2, 3))))
    assert [edge.peer for edge in ready.holdings.edges] == [2, 3, 4, 5]
    assert [held.dealer for held in ready.holdings.held] == [0, 1, 2, 3, 4, 5]
    assert ready.base_view != fed.ready[ME].base_view


def test_removed_edges_of_others_enter_the_view(fed: Any) -> None:
    """A client cannot see whether tags of others differ; a server that lies about it splits the view."""
    ready = call(fed, fed.before[Phase.MASKED_INPUT][ME], "accept_dealings", dealt(fed, removed=((2, 3),)))
    assert ready.base_view != fed.ready[ME].base_view
    assert ready.holdings == fed.ready[ME].holdings


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("garbled", lambda leaf: replace(leaf, box=leaf.box[:-1] + bytes([leaf.box[-1] ^ 1]))),
        ("empty", lambda leaf: replace(leaf, box=b"")),
        ("short", lambda leaf: replace(leaf, box=leaf.box[:20])),
        ("tag_only", lambda leaf: replace(leaf, box=bytes(16))),
        ("seed_hash", lambda leaf: replace(leaf, seed_share_hash=bytes(32))),
        ("key_hash", lambda leaf: replace(leaf, key_share_hash=bytes(32))),
        ("hashes_swapped", lambda leaf: replace(leaf, seed_share_hash=leaf.key_share_hash, key_share_hash=leaf.seed_share_hash)),
    ],
)
def test_a_bad_box_that_its_dealer_signed_is_disputed_and_removes_no_edge(fed: Any, name: str, change: Any) -> None:
    ready = call(fed, fed.before[Phase.MASKED_INPUT][ME], "accept_dealings", dealt(fed, _0=redeal(fed, 0, change)))
    assert ready.disputed == (0,)
    assert [held.dealer for held in ready.holdings.held] == [1, 2, 3, 4, 5]
    assert [edge.peer for edge in ready.holdings.edges] == [0, 2, 3, 4, 5]
    _, message = ready.upload(fed.encoded[ME], signer=fed.signers[ME])
    assert Input.decode(Envelope.decode(message).content).disputed == (0,)


def test_a_box_with_a_share_that_is_no_field_element_is_disputed(fed: Any, rounds: Any) -> None:
    """The dealer signs the hash of what it sealed; the holder refuses it all the same, since it could not be combined."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    from fedsec.secagg.dealing import _associated

    dealer, context = fed.server.adverts[0][0], fed.server.context
    private = PrivateKey(field_secret(fed.draw("join", 0, 96)[32:64]))
    keys = box_keys(private.exchange(fed.server.adverts[ME][0].box_key), dealer, fed.server.adverts[ME][0])
    shares = (b"\xff" * 32, bytes(32))

    def change(leaf: DealtLeaf) -> DealtLeaf:
        hashes = [share_hash(context, 0, ME, of_key=of_key, share=share) for of_key, share in enumerate(shares)]
        box = AESGCM(keys.seal).encrypt(bytes(12), b"".join(shares), _associated(context, 0, ME))
        return replace(leaf, box=box, seed_share_hash=hashes[0], key_share_hash=hashes[1])

    ready = call(fed, fed.before[Phase.MASKED_INPUT][ME], "accept_dealings", dealt(fed, _0=redeal(fed, 0, change)))
    assert ready.disputed == (0,)


def sketch_request(fed: Any, change: Callable[[SketchRequest], SketchRequest], *, reroot: bool = True) -> bytes:
    """A changed request whose root fits its inputs again."""

    def changed(request: SketchRequest) -> SketchRequest:
        made = change(request)
        root = input_root(made.context, {leaf.sender: leaf.digest for leaf in made.inputs})
        return replace(made, cohort_roots=(root,)) if reroot else made

    return edit(fed, Phase.SKETCH, changed)


SKETCH_ATTACKS: dict[str, tuple[str, Callable[[Any], bytes]]] = {
    "own_input_missing": ("missing or changed", lambda f: sketch_request(f, lambda r: replace(r, inputs=without(r.inputs, ME)))),
    "own_input_changed": (
        "missing or changed",
        lambda f: sketch_request(f, lambda r: replace(r, inputs=put(r.inputs, ME, replace(r.inputs[ME], digest=bytes(32))))),
    ),
    "inputs_swapped": (
        "missing or changed",
        lambda f: sketch_request(
            f, lambda r: replace(r, inputs=(InputLeaf(sender=0, digest=r.inputs[1].digest), InputLeaf(sender=1, digest=r.inputs[0].digest), *r.inputs[2:]))
        ),
    ),
    "no_inputs": ("missing or changed", lambda f: sketch_request(f, lambda r: replace(r, inputs=()))),
    "an_input_of_a_stranger": (
        "did not deal",
        lambda f: sketch_request(f, lambda r: replace(r, inputs=(*r.inputs, InputLeaf(sender=6, digest=bytes(32))))),
    ),
    "another_nonce": ("commits", lambda f: sketch_request(f, lambda r: replace(r, nonce=bytes(32)))),
    "the_commitment_as_nonce": ("commits", lambda f: sketch_request(f, lambda r: replace(r, nonce=f.config.nonce_commitment))),
    "cohort_root_of_other_inputs": ("roots", lambda f: sketch_request(f, lambda r: replace(r, cohort_roots=(bytes(32),)), reroot=False)),
    "no_roots": ("roots", lambda f: sketch_request(f, lambda r: replace(r, cohort_roots=()), reroot=False)),
    "roots_of_more_cohorts_than_config": ("roots", lambda f: sketch_request(f, lambda r: replace(r, cohort_roots=(*r.cohort_roots, bytes(32))), reroot=False)),
    "root_not_after_an_input_is_changed": (
        "roots",
        lambda f: sketch_request(f, lambda r: replace(r, inputs=put(r.inputs, 0, replace(r.inputs[0], digest=bytes(32)))), reroot=False),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SKETCH_ATTACKS)
def test_a_matrix_that_does_not_follow_from_the_fixed_uploads_is_refused(fed: Any, name: str) -> None:
    match, make = SKETCH_ATTACKS[name]
    refused(fed, fed.before[Phase.SKETCH][ME], "sketch", make(fed), match)


def test_another_input_of_a_peer_is_another_view(fed: Any) -> None:
    request = sketch_request(fed, lambda r: replace(r, inputs=put(r.inputs, 0, replace(r.inputs[0], digest=bytes(32)))))
    split, _ = call(fed, fed.before[Phase.SKETCH][ME], "sketch", request)
    honest = fed.before[Phase.CONSISTENCY_CHECK][ME]
    assert split.view != honest.view
    assert split.matrix_seed != honest.matrix_seed
    refused(fed, split, "consent", fed.requests[Phase.CONSISTENCY_CHECK][ME], "changed|verify")
    refused(fed, split, "unmask", fed.requests[Phase.UNMASK][ME], "changed|verify")


def sketch_of(fed: Any, index: int, **changes: Any) -> CommittedSketch:
    statement = replace(fed.server.sketches[index].statement, **changes)
    return CommittedSketch(sender=index, commitment=statement.commitment, signature=signed_part(fed, index, statement).signature)


AGREEMENT_ATTACKS: dict[str, tuple[str, Callable[[Any], Callable[[Any], Any]]]] = {
    "a_and_d_overlap": ("U2, each once", lambda f: lambda r: replace(r, rejected=(3, 4, 5))),
    "a_member_of_u2_left_out": ("U2, each once", lambda f: lambda r: replace(r, rejected=(4,))),
    "the_vanished_left_out": ("U2, each once", lambda f: lambda r: replace(r, rejected=(5,))),
    "a_stranger_rejected": ("U2, each once", lambda f: lambda r: replace(r, rejected=(4, 5, 6))),
    "a_stranger_accepted": ("U2, each once", lambda f: lambda r: replace(r, accepted=(*r.accepted, replace(r.accepted[0], sender=9)))),
    "accepted_without_input": ("without an input", lambda f: lambda r: replace(r, accepted=(*r.accepted, replace(r.accepted[0], sender=5)), rejected=(4,))),
    "fewer_than_a_min": ("too few", lambda f: lambda r: replace(r, accepted=r.accepted[:2], rejected=(2, 3, 4, 5))),
    "victim_alone": ("too few", lambda f: lambda r: replace(r, accepted=(r.accepted[ME],), rejected=(0, 2, 3, 4, 5))),
    "nobody": ("too few", lambda f: lambda r: replace(r, accepted=(), rejected=(0, 1, 2, 3, 4, 5))),
    "sketch_under_another_view": ("verify", lambda f: lambda r: replace(r, accepted=put(r.accepted, 0, sketch_of(f, 0, view=bytes(32))))),
    "sketch_of_another_context": ("verify", lambda f: lambda r: replace(r, accepted=put(r.accepted, 0, sketch_of(f, 0, context=bytes(32))))),
    "sketch_of_another_member": ("verify", lambda f: lambda r: replace(r, accepted=put(r.accepted, 0, replace(r.accepted[2], sender=0)))),
    "sketch_not_the_signed_one": ("verify", lambda f: lambda r: replace(r, accepted=put(r.accepted, 0, replace(r.accepted[0], commitment=bytes(32))))),
    "own_sketch_changed": ("own sketch", lambda f: lambda r: replace(r, accepted=put(r.accepted, ME, replace(r.accepted[ME], commitment=bytes(32))))),
    "own_signature_of_another_sketch": ("own sketch", lambda f: lambda r: replace(r, accepted=put(r.accepted, ME, sketch_of(f, ME, commitment=bytes(32))))),
}  # fmt: skip


@pytest.mark.parametrize("name", AGREEMENT_ATTACKS)
def test_unsound_sets_find_no_consent_and_open_nothing(fed: Any, name: str) -> None:
    """The same sets are refused in UNMASK, even under a certificate of everybody's signatures."""
    match, make = AGREEMENT_ATTACKS[name]
    state = fed.before[Phase.CONSISTENCY_CHECK][ME]
    bad = make(fed)(ConsistencyRequest.decode(fed.requests[Phase.CONSISTENCY_CHECK][ME]))
    refused(fed, state, "consent", bad.encode(), match)
    refused(fed, state, "unmask", certified(fed, bad, range(6)), match)
    refused(fed, fed.before[Phase.UNMASK][ME], "unmask", certified(fed, bad, range(6)))


def certified(fed: Any, request: ConsistencyRequest, signers: Any, *, view: bytes | None = None) -> bytes:
    """An UNMASK request whose certificate the given members really signed."""
    view = fed.server.view if view is None else view
    agreed = agreement_digest(view, request)
    certificate = tuple(
        MemberSignature(
            sender=index,
            signature=signed_part(fed, index, Consent(context=request.context, sender=index, view=view, agreement=agreed)).signature,
        )
        for index in signers
    )
    return UnmaskRequest(context=request.context, accepted=request.accepted, rejected=request.rejected, certificate=certificate).encode()


def true_sets(fed: Any) -> ConsistencyRequest:
    return ConsistencyRequest.decode(fed.requests[Phase.CONSISTENCY_CHECK][ME])


def other_sets(fed: Any) -> ConsistencyRequest:
    """Sound sets as well: member 3 is rejected too."""
    true = true_sets(fed)
    return replace(true, accepted=true.accepted[:3], rejected=(3, 4, 5))


def cut_certificate(fed: Any, change: Callable[[tuple[MemberSignature, ...]], tuple[MemberSignature, ...]]) -> bytes:
    return edit(fed, Phase.UNMASK, lambda r: replace(r, certificate=change(r.certificate)))


CERTIFICATE_ATTACKS: dict[str, tuple[str, Callable[[Any], bytes]]] = {
    "one_too_few": ("3 signers", lambda f: cut_certificate(f, lambda c: c[:3])),
    "none": ("0 signers", lambda f: cut_certificate(f, lambda c: ())),
    "a_stranger": ("signers", lambda f: cut_certificate(f, lambda c: (*c, replace(c[0], sender=6)))),
    "a_signature_of_another": ("verify", lambda f: cut_certificate(f, lambda c: put(c, 0, replace(c[2], sender=0)))),
    "one_signature_for_all": ("verify", lambda f: cut_certificate(f, lambda c: tuple(replace(c[0], sender=i) for i in range(4)))),
    "one_false_of_more_than_enough": ("canonical|verify", lambda f: cut_certificate(f, lambda c: (*c, replace(c[0], sender=4, signature=bytes(64))))),
    "for_other_sets": ("verify", lambda f: cut_certificate(f, lambda c: UnmaskRequest.decode(certified(f, other_sets(f), range(5))).certificate)),
    "under_another_view": ("verify", lambda f: certified(f, true_sets(f), range(5), view=bytes(32))),
}  # fmt: skip


@pytest.mark.parametrize("name", CERTIFICATE_ATTACKS)
@pytest.mark.parametrize("consented", [True, False])
def test_without_a_certificate_of_t_members_nothing_opens(fed: Any, name: str, consented: bool) -> None:
    match, make = CERTIFICATE_ATTACKS[name]
    refused(fed, fed.before[Phase.UNMASK if consented else Phase.CONSISTENCY_CHECK][ME], "unmask", make(fed), match)


def test_a_signer_twice_is_one_signer(fed: Any) -> None:
    request = UnmaskRequest.decode(fed.requests[Phase.UNMASK][ME])
    twice = replace(request, certificate=request.certificate[:3])
    object.__setattr__(twice, "certificate", (*request.certificate[:3], request.certificate[2]))
    refused(fed, fed.before[Phase.UNMASK][ME], "unmask", twice.encode(), "increasing")


def test_who_consented_unmasks_for_no_other_sets_though_all_the_others_signed(fed: Any) -> None:
    """Without its own signature it would: a certificate is t signatures, and a client may have missed stage 5."""
    other = certified(fed, other_sets(fed), [0, 2, 3, 4])
    refused(fed, fed.before[Phase.UNMASK][ME], "unmask", other, "other sets")
    unmasked, _ = call(fed, fed.before[Phase.CONSISTENCY_CHECK][ME], "unmask", other)
    assert isinstance(unmasked, Unmasked)


def test_exactly_t_signers_are_enough(fed: Any) -> None:
    call(fed, fed.before[Phase.UNMASK][ME], "unmask", cut_certificate(fed, lambda c: c[:4]))
    call(fed, fed.before[Phase.UNMASK][ME], "unmask", certified(fed, true_sets(fed), [0, 2, 4, 5]))


# --- joining: the policy decides ---


def joining(fed: Any, policy: LocalPolicy | None = None, *, weight: int = 10, index: int = ME, **changes: Any) -> Any:
    return join(
        replace(fed.config, **changes), fed.members, index, policy=policy or LocalPolicy(), weight=weight, signer=fed.signers[ME],
        randomness=fed.draw("join", ME, 96),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("policy", "changes", "match"),
    [
        (LocalPolicy(minimum_cohort=7), {}, "num_clients is 6"),
        (LocalPolicy(num_corrupt=2), {}, "num_corrupt is 1"),
        (LocalPolicy(honest_minimum=3), {}, "least is 3"),
        (LocalPolicy(maximum_rows=15), {}, "16 sketch rows"),
        (LocalPolicy(maximum_rows=31), {"attempt": 2}, "32 sketch rows"),
        (LocalPolicy(maximum_rows=0), {}, "sketch rows"),
        (LocalPolicy(sketches_allowed=False), {}, "releases no sketches"),
    ],
)
def test_a_round_that_protects_less_than_the_policy_asks_is_refused(fed: Any, policy: LocalPolicy, changes: Any, match: str) -> None:
    with pytest.raises(PeerError, match=match):
        joining(fed, policy, **changes)


@pytest.mark.parametrize(
    ("policy", "changes"),
    [
        (LocalPolicy(minimum_cohort=6), {}), (LocalPolicy(maximum_rows=16), {}), (LocalPolicy(maximum_rows=32), {"attempt": 2}),
        (LocalPolicy(honest_minimum=3), {"minimum_accepted": 4}),
    ],
)  # fmt: skip
def test_a_round_that_just_meets_the_policy_is_joined(fed: Any, policy: LocalPolicy, changes: Any) -> None:
    joining(fed, policy, **changes)


def test_a_cohort_that_is_not_the_rosters_is_not_joined(fed: Any) -> None:
    with pytest.raises(PeerError, match="not the member"):
        joining(fed, index=0)
    with pytest.raises(PeerError, match="not the member"):
        joining(fed, index=6)
    with pytest.raises(PeerError, match="not the member"):
        joining(fed, index=-5)
    for members, match in [
        (fed.members[:5], "5 members"),
        ((*fed.members[:5], fed.members[0]), "twice"),
        ((*fed.members[:5], replace(fed.members[5], client_id=fed.members[0].client_id)), "twice"),
        ((*fed.members[:5], replace(fed.members[5], public_key=fed.members[0].public_key)), "twice"),
    ]:
        with pytest.raises(PeerError, match=match):
            join(fed.config, members, ME, policy=LocalPolicy(), weight=1, signer=fed.signers[ME], randomness=bytes(96))


@pytest.mark.parametrize("weight", [0, 101])
def test_a_weight_out_of_range_is_not_declared(fed: Any, weight: int) -> None:
    with pytest.raises(PeerError, match="weight"):
        joining(fed, weight=weight)


@pytest.mark.parametrize("size", [0, 95, 97])
def test_a_wrong_number_of_random_bytes_makes_no_keys(fed: Any, size: int) -> None:
    with pytest.raises(ValueError, match="random bytes"):
        join(fed.config, fed.members, ME, policy=LocalPolicy(), weight=1, signer=fed.signers[ME], randomness=bytes(size))


# --- uploading ---


def test_a_vector_that_is_no_encoded_update_is_not_uploaded(fed: Any) -> None:
    ready = fed.ready[ME]
    for vector in (
        fed.encoded[ME][:-1], np.append(fed.encoded[ME], np.int32(0)), np.full(40, fed.config.norm_bound // 6, dtype=np.int32),
        np.full(40, -(2**31), dtype=np.int32),
    ):  # fmt: skip
        with pytest.raises(LocalProtocolError):
            ready.upload(vector, signer=fed.signers[ME])


def test_the_sketch_is_of_the_vector_that_was_uploaded_or_none(fed: Any) -> None:
    """Another vector, trained again after a restart, say, would make an honest client sign a provable lie."""
    uploaded, request = fed.before[Phase.SKETCH][ME], fed.requests[Phase.SKETCH][ME]
    assert isinstance(uploaded, Uploaded)
    before = uploaded.encode()
    for vector in (fed.encoded[0], fed.encoded[ME][:-1], fed.encoded[ME].astype(np.int64), fed.encoded[ME][::-1]):
        with pytest.raises(LocalProtocolError, match="not the vector"):
            uploaded.sketch(request, vector, signer=fed.signers[ME], salt=bytes(32))
    assert uploaded.encode() == before


def test_an_upload_says_nothing_of_the_update_without_the_masks(fed: Any) -> None:
    """The same secrets, another update: uploads differ by exactly the difference, and neither is the update."""
    ready = fed.ready[ME]
    one = np.frombuffer(Envelope.decode(ready.upload(fed.encoded[0], signer=fed.signers[ME])[1]).attachment, dtype="<u4")
    other = np.frombuffer(Envelope.decode(ready.upload(fed.encoded[2], signer=fed.signers[ME])[1]).attachment, dtype="<u4")
    assert np.array_equal((one - other).astype(np.int32), fed.encoded[0] - fed.encoded[2])
    assert not np.any(one.astype(np.int32) == fed.encoded[0])


# --- (e) UNMASK ---


def test_unmask_releases_one_share_a_member_of_the_right_kind_and_keeps_none(fed: Any) -> None:
    message = Envelope.decode(fed.messages[Phase.UNMASK][ME])
    statement = Shares.decode(message.content)
    held = {shares.dealer: shares for shares in fed.ready[ME].holdings.held}
    assert sorted(held) == [0, 1, 2, 3, 4, 5]
    expected = [held[index].seed_share for index in range(4)] + [held[index].key_share for index in (4, 5)]
    assert list(statement.shares) == expected
    assert message.attachment == b""
    stored, sent = fed.states[ME].encode(), fed.messages[Phase.UNMASK][ME]
    for index, shares in held.items():
        kept, given = (shares.key_share, shares.seed_share) if index < 4 else (shares.seed_share, shares.key_share)
        assert sent.count(given) == 1
        assert kept not in sent
        assert kept not in stored
        assert given not in stored


def test_own_mask_key_and_box_keys_end_with_stage_2_and_own_seed_with_stage_3(fed: Any, states: dict[type, Any]) -> None:
    drawn = fed.draw("join", ME, 96)
    mask_key, box_key, seed = (field_secret(drawn[at : at + 32]) for at in (0, 32, 64))
    for secret, holders in ((mask_key, {Advertised}), (box_key, {Advertised}), (seed, {Advertised, Dealt, Ready})):
        assert {kind for kind, state in states.items() if secret in state.encode()} == holders
    open_key = states[Dealt].pairs[0].open_key
    assert {kind for kind, state in states.items() if open_key in state.encode()} == {Dealt}


def test_after_unmask_only_seeds_of_edges_within_a_are_kept(fed: Any) -> None:
    assert [edge.peer for edge in fed.states[ME].edges] == [0, 2, 3]
    assert fed.states[4].edges == ()
    kept = fed.states[ME].encode()
    seeds = {edge.peer: edge.seed for edge in fed.ready[ME].holdings.edges}
    assert [peer for peer, seed in seeds.items() if seed in kept] == [0, 2, 3]


def test_of_a_disputed_dealer_no_share_is_sent(rounds: Any) -> None:
    fed = rounds.Federation(num_clients=6, name="disputed").run(Phase.SHARE_KEYS)
    for index in range(6):
        fed.answer(index)
    envelope = Envelope.decode(fed.messages[Phase.SHARE_KEYS][0])
    leaves = list(DealtLeaves.decode(envelope.attachment).leaves)
    leaves[ME] = replace(leaves[ME], box=bytes(80))
    dealing = Dealing(context=fed.server.context, sender=0, root=merkle_root(leaf_hashes(leaves)))
    fed.messages[Phase.SHARE_KEYS][0] = fed.sign(0, dealing, attachment=DealtLeaves(leaves=tuple(leaves)).encode())
    fed.store(0, replace(fed.states[0], root=dealing.root))
    for index in range(6):
        fed.deliver(index, fed.messages[Phase.SHARE_KEYS][index])
    fed.advance()
    opened = fed.finish()
    assert fed.ready[ME].disputed == (0,)
    assert [bool(share) for share in Shares.decode(Envelope.decode(fed.messages[Phase.UNMASK][ME]).content).shares] == [False] + [True] * 5
    assert np.array_equal(opened.total, fed.expected(range(6)))


# --- BLAME ---


def test_a_rejected_client_signs_no_blame_values_and_opens_no_edge(fed: Any, everything: dict[str, bytes]) -> None:
    state = fed.states[4]
    for step in ("blame_values", "open_edge"):
        refused(fed, state, step, everything["blame" if step == "blame_values" else "blame_open"], "not among the accepted")


def values_of(fed: Any, peer: int, **changes: Any) -> BlameValues:
    blame = BlameRequest(context=fed.server.context).encode()
    values = BlameValues.decode(Envelope.decode(fed.states[peer].blame_values(blame, signer=fed.signers[peer])).content)
    return replace(values, **changes)


def lying_to(fed: Any, peer: int, **changes: Any) -> OpenEdgeRequest:
    values = values_of(fed, peer)
    edges = tuple(replace(edge, values=bytes(64)) if edge.peer == ME else edge for edge in values.edges)
    part = signed_part(fed, peer, replace(values, **{"edges": edges, **changes}))
    return OpenEdgeRequest(context=fed.server.context, peer_values=part)


OPEN_ATTACKS: dict[str, tuple[str, Callable[[Any], OpenEdgeRequest]]] = {
    "the_peer_agrees": ("no differing", lambda f: OpenEdgeRequest(context=f.server.context, peer_values=signed_part(f, 2, values_of(f, 2)))),
    "the_peer_is_silent_on_this_edge": (
        "no differing",
        lambda f: OpenEdgeRequest(
            context=f.server.context,
            peer_values=signed_part(f, 2, values_of(f, 2, edges=tuple(e for e in values_of(f, 2).edges if e.peer != ME))),
        ),
    ),
    "not_signed_by_the_peer": (
        "verify",
        lambda f: OpenEdgeRequest(context=f.server.context, peer_values=replace(lying_to(f, 2).peer_values, signature=lying_to(f, 3).peer_values.signature)),
    ),
    "another_view": ("another view", lambda f: lying_to(f, 2, view=bytes(32))),
    "another_agreement": ("another view or agreement", lambda f: lying_to(f, 2, agreement=bytes(32))),
    "a_rejected_peer": ("no edge", lambda f: OpenEdgeRequest(context=f.server.context, peer_values=signed_part(f, 4, values_of(f, 2, sender=4)))),
    "oneself": ("no edge", lambda f: OpenEdgeRequest(context=f.server.context, peer_values=signed_part(f, ME, values_of(f, ME)))),
    "another_context": ("another round", lambda f: lying_to(f, 2, context=bytes(32))),
    "another_round": ("another round", lambda f: replace(lying_to(f, 2), context=bytes(32))),
}  # fmt: skip


@pytest.mark.parametrize("name", OPEN_ATTACKS)
def test_an_edge_opens_only_to_a_peer_that_signed_another_value(fed: Any, name: str) -> None:
    match, make = OPEN_ATTACKS[name]
    refused(fed, fed.states[ME], "open_edge", make(fed).encode(), match)


def test_edges_to_no_more_than_c_peers_open(fed: Any) -> None:
    opened, message = call(fed, fed.states[ME], "open_edge", lying_to(fed, 2).encode())
    assert opened.opened == (2,)
    seeds = {edge.peer: edge.seed for edge in fed.ready[ME].holdings.edges}
    assert seeds[2] in message
    assert not any(seed in message for peer, seed in seeds.items() if peer != 2)
    again, _ = call(fed, opened, "open_edge", lying_to(fed, 2).encode())
    assert again == opened
    refused(fed, opened, "open_edge", lying_to(fed, 3).encode(), "were opened before")


# --- (f) secrets stay out of texts ---


def all_secrets(fed: Any, states: dict[type, Any]) -> dict[str, bytes]:
    drawn = fed.draw("join", ME, 96)
    secrets = {f"join{at}": field_secret(drawn[at : at + 32]) for at in (0, 32, 64)}
    secrets |= {f"pair{edge.peer}": edge.seed for edge in states[Dealt].pairs}
    secrets |= {f"box{edge.peer}": edge.open_key for edge in states[Dealt].pairs}
    secrets |= {f"seed share{held.dealer}": held.seed_share for held in states[Ready].holdings.held}
    secrets |= {f"key share{held.dealer}": held.key_share for held in states[Ready].holdings.held}
    secrets["salt"] = fed.draw("salt", ME, 32)
    secrets["signer"] = fed.signers[ME]._private_key.private_numbers().private_value.to_bytes(32, "big")
    return secrets


def assert_silent(text: str, secrets: dict[str, bytes]) -> None:
    for name, secret in secrets.items():
        numbers = (int.from_bytes(secret, "big"), int.from_bytes(secret, "little"))
        for shown in (secret.hex(), repr(secret)[2:-1], repr(list(secret)), *(str(number) for number in numbers)):
            assert shown not in text, name


def test_no_text_of_a_phase_shows_a_secret(fed: Any, states: dict[type, Any]) -> None:
    secrets = all_secrets(fed, states)
    for state in states.values():
        assert_silent(repr(state) + str(state) + f"{state}", secrets)
        for field in fields(state):
            if field.repr and is_dataclass(getattr(state, field.name)):
                assert_silent(repr(getattr(state, field.name)), secrets)
    key = PrivateKey(secrets["join0"])
    assert_silent(repr(key) + repr(vars(key)) + repr(fed.signers[ME]), secrets)
    assert_silent(repr(box_keys(bytes(32), fed.server.adverts[0][0], fed.server.adverts[ME][0])), {"key": box_keys(bytes(32), fed.server.adverts[0][0], fed.server.adverts[ME][0]).seal})  # fmt: skip


def test_no_refusal_shows_a_secret(fed: Any, states: dict[type, Any], everything: dict[str, bytes]) -> None:
    secrets = all_secrets(fed, states)
    attacks = {
        "share_keys": [make(fed) for _, make in SHARE_KEYS_ATTACKS.values()], "accept_dealings": [make(fed) for _, make in DEALING_ATTACKS.values()],
        "sketch": [make(fed) for _, make in SKETCH_ATTACKS.values()], "unmask": [make(fed) for _, make in CERTIFICATE_ATTACKS.values()],
        "open_edge": [make(fed).encode() for _, make in OPEN_ATTACKS.values()], "consent": [], "blame_values": [],
    }  # fmt: skip
    for kind, steps in TAKES.items():
        for step in steps:
            if step == "upload":
                continue
            for data in [*attacks[step], *(data for name, data in everything.items() if name != WANTS[step])]:
                with pytest.raises(FedsecError) as caught:
                    call(fed, states[kind], step, data)
                error: BaseException | None = caught.value
                while error is not None:
                    assert_silent(str(error) + repr(error) + repr(error.args), secrets)
                    error = error.__cause__ or error.__context__


def test_what_was_not_sent_shows_in_no_message(fed: Any, states: dict[type, Any]) -> None:
    """Private keys, pair seeds, box keys: in none of the messages, in clear."""
    secrets = all_secrets(fed, states)
    for phase, messages in fed.messages.items():
        for name, secret in secrets.items():
            if ME in messages and "share" not in name and name != "salt":
                assert secret not in messages[ME], (phase, name)
