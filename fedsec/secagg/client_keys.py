"""A client's first steps in a round: fresh keys, dealt shares, checked boxes. ``client.py`` tells the whole story.

1. Nothing here releases a share in clear: what leaves are public keys, a commitment, and boxes that one peer each can open.
2. Private keys of X25519 end with stage 2. What they are good for, pair seeds and box keys, is derived there, once.
3. A client sees U2 with its own eyes: every root signed, every leaf for it under its dealer's root, its own dealing unchanged.
4. An edge is removed if and only if its two signed tags differ; over c of them at one client, and it takes no part.

Source: Bonawitz et al. 2017, figure 4, rounds 0 and 1; design note SECAGG, stages 0 to 3; decision 0010, findings 1, 6, 7, 8 and 13.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fedsec.errors import ConfigError, DecodeError
from fedsec.merkle import leaf_hash, merkle_root, verify_inclusion
from fedsec.secagg import shamir
from fedsec.secagg.checks import check_advert, read_members_statement, sign_statement, verify_statement
from fedsec.secagg.client import Ready
from fedsec.secagg.config import LocalPolicy, Member, RoundConfig, check_members
from fedsec.secagg.dealing import BoxKeys, HeldShares, box_keys, deal, leaf_hashes, open_leaf
from fedsec.secagg.keys import PrivateKey, repeated_keys
from fedsec.secagg.labels import DIGEST_BYTES, MAX_COHORT, SECRET_BYTES, SEED_BYTES, STREAM_KEY_BYTES, Phase
from fedsec.secagg.masking import PairEnd, edge_tag, pair_seed, seed_commitment
from fedsec.secagg.messages import INDEX, Advert, Dealing, DealtLeaf, DealtLeaves, DealtPart, MaskedInputRequest, ShareKeysRequest
from fedsec.secagg.seat import Holdings, KeptEdge, Seat, refusing
from fedsec.secagg.views import base_view
from fedsec.secagg.wire import Fixed, ListOf, Part, Parted, Record
from fedsec.signing import Signer, Verify

JOIN_BYTES = 3 * SECRET_BYTES
"""Random bytes that :func:`join` takes."""


def deal_bytes(threshold: int) -> int:
    """Random bytes that :meth:`Advertised.share_keys` takes."""
    return 2 * shamir.randomness_bytes(threshold)


def join(
    config: RoundConfig, members: Sequence[Member], index: int, *, policy: LocalPolicy, weight: int, signer: Signer, randomness: bytes
) -> tuple[Advertised, bytes]:
    """Stage 1: make fresh keys and advertise them.

    Args:
        config: as the server signed it, and read by ``checks.read_config``.
        members: of the cohort, in order, from the CA's list.
        index: this client's place among them.
        policy: what this client insists on.
        weight: declared batch size.
        signer: of this client's identity key.
        randomness: ``JOIN_BYTES`` fresh secret bytes.

    Raises:
        PeerError: the policy forbids the round, or the cohort is not CONFIG's; nothing was made.
        ValueError: a wrong number of random bytes.
    """
    if len(randomness) != JOIN_BYTES:
        raise ValueError(f"{len(randomness)} random bytes, expected {JOIN_BYTES}")
    with refusing(Phase.ADVERTISE_KEYS):
        policy.check(config)
        check_members(config, members)
        if not 0 <= index < len(members) or members[index].public_key != signer.public_key:
            raise ConfigError("this client is not the member that the roster names")
    mask_key, box_key, seed = (shamir.field_secret(randomness[at : at + SECRET_BYTES]) for at in range(0, JOIN_BYTES, SECRET_BYTES))
    seat = Seat(config=config, members=tuple(members), index=index)
    advert = Advert(
        context=seat.context,
        sender=index,
        mask_key=PrivateKey(mask_key).public_key,
        box_key=PrivateKey(box_key).public_key,
        seed_commitment=seed_commitment(seed),
        weight=weight,
    )
    with refusing(Phase.ADVERTISE_KEYS):
        check_advert(advert, config)
    return Advertised(seat=seat, advert=advert, mask_key=mask_key, box_key=box_key, seed=seed), sign_statement(advert, signer)


@dataclass(frozen=True, kw_only=True)
class Advertised(Record):
    """After stage 1: waiting for the adverts of U1."""

    TYPE = 50
    FIELDS = (
        ("seat", Part(Seat)),
        ("advert", Part(Advert)),
        ("mask_key", Fixed(SECRET_BYTES)),
        ("box_key", Fixed(SECRET_BYTES)),
        ("seed", Fixed(SECRET_BYTES)),
    )
    seat: Seat
    advert: Advert
    mask_key: bytes = field(repr=False)
    box_key: bytes = field(repr=False)
    seed: bytes = field(repr=False)

    def share_keys(self, data: bytes, *, signer: Signer, verify: Verify, randomness: bytes) -> tuple[Dealt, bytes]:
        """Stage 2: check the adverts of U1 and deal shares of both secrets among its members.

        Private keys end here: what they are good for is derived now.

        Args:
            data: a :class:`ShareKeysRequest`.
            signer: of the identity key.
            verify: checks signatures.
            randomness: ``deal_bytes(threshold)`` fresh secret bytes.

        Raises:
            PeerError: U1 is too small, changed, forged, or holds a key twice.
        """
        with refusing(Phase.SHARE_KEYS):
            adverts = self._read_adverts(ShareKeysRequest.decode(data), verify)
            peers = sorted(adverts.keys() - {self.seat.index})
            pairs, keys, tags = self._derive(adverts, peers)
        leaves, own = deal(
            self.advert, sorted(adverts), seed=self.seed, mask_key=self.mask_key, keys=keys, tags=tags,
            threshold=self.seat.config.threshold, randomness=randomness,
        )  # fmt: skip
        dealing = Dealing(context=self.seat.context, sender=self.seat.index, root=merkle_root(leaf_hashes(leaves)))
        dealt = Dealt(
            seat=self.seat,
            adverts=tuple(adverts[index] for index in sorted(adverts)),
            seed=self.seed,
            pairs=tuple(OpenEdge(peer=peer, seed=pairs[peer], tag=tags[peer], open_key=keys[peer].open) for peer in peers),
            own=own,
            root=dealing.root,
        )
        return dealt, sign_statement(dealing, signer, attachment=DealtLeaves(leaves=leaves).encode())

    def _read_adverts(self, request: ShareKeysRequest, verify: Verify) -> dict[int, Advert]:
        seat = self.seat
        if request.context != seat.context:
            raise DecodeError("a request of another round")
        adverts: dict[int, Advert] = {}
        for part in request.adverts:
            advert = read_members_statement(Advert, part.content, part.signature, context=seat.context, members=seat.members, verify=verify)
            if advert.sender <= max(adverts, default=-1):
                raise DecodeError(f"member {advert.sender} is not in order")
            check_advert(advert, seat.config)
            adverts[advert.sender] = advert
        if adverts.get(seat.index) != self.advert:
            raise DecodeError("this client's own advert is missing or changed")
        if len(adverts) < seat.config.threshold:
            raise DecodeError(f"{len(adverts)} members advertised, {seat.config.threshold} are needed")
        if repeated := repeated_keys(adverts.values()):
            raise DecodeError(f"members {sorted(repeated)} advertise a key that stands somewhere else too")
        return adverts

    def _derive(
        self, adverts: dict[int, Advert], peers: Sequence[int]
    ) -> tuple[dict[int, bytes], dict[int, BoxKeys], dict[int, bytes]]:  # fmt: skip
        """Pair seeds, box keys and edge tags by peer."""
        mask_key, box_key, context, index = PrivateKey(self.mask_key), PrivateKey(self.box_key), self.seat.context, self.seat.index
        own_end = PairEnd(index=index, public_key=self.advert.mask_key)
        seeds, keys, tags = {}, {}, {}
        for peer in peers:
            other = adverts[peer]
            end = PairEnd(index=peer, public_key=other.mask_key)
            seeds[peer] = pair_seed(mask_key.exchange(other.mask_key), context, own_end, end)
            keys[peer] = box_keys(box_key.exchange(other.box_key), self.advert, other)
            tags[peer] = edge_tag(seeds[peer], context, index, peer)
        return seeds, keys, tags


@dataclass(frozen=True, kw_only=True)
class OpenEdge(Parted):
    """What is kept of one edge until the boxes are opened."""

    FIELDS = (("peer", INDEX), ("seed", Fixed(SEED_BYTES)), ("tag", Fixed(DIGEST_BYTES)), ("open_key", Fixed(STREAM_KEY_BYTES)))
    peer: int
    seed: bytes = field(repr=False)
    tag: bytes
    open_key: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Dealt(Record):
    """After stage 2: waiting for what U2 dealt to this client."""

    TYPE = 51
    FIELDS = (
        ("seat", Part(Seat)),
        ("adverts", ListOf(Part(Advert), MAX_COHORT)),
        ("seed", Fixed(SECRET_BYTES)),
        ("pairs", ListOf(Part(OpenEdge), MAX_COHORT)),
        ("own", Part(HeldShares)),
        ("root", Fixed(DIGEST_BYTES)),
    )
    seat: Seat
    adverts: tuple[Advert, ...]
    seed: bytes = field(repr=False)
    pairs: tuple[OpenEdge, ...]
    own: HeldShares
    root: bytes

    def accept_dealings(self, data: bytes, *, verify: Verify) -> Ready:
        """Stage 3, before training: check U2, open the boxes, and agree on the edges that are removed.

        Args:
            data: a :class:`MaskedInputRequest`.
            verify: checks signatures.

        Raises:
            PeerError: U2 is too small or not within U1, something is forged or garbled, or too many edges are gone.
        """
        with refusing(Phase.MASKED_INPUT):
            request = MaskedInputRequest.decode(data)
            leaves = self._read_leaves(request, verify)
            removed = self._check_removed(request, leaves)
        seat, edges = self.seat, {edge.peer: edge for edge in self.pairs}
        held, disputed = {seat.index: self.own}, []
        for dealer, leaf in leaves.items():
            shares = open_leaf(leaf, context=seat.context, dealer=dealer, open_key=edges[dealer].open_key)
            if shares is None:
                disputed.append(dealer)
            else:
                held[dealer] = shares
        dealings = {part.sender: self._dealing(part).encode() for part in request.dealt}
        view = base_view(seat.context, {advert.sender: advert.encode() for advert in self.adverts}, dealings, request.removed)
        return Ready(
            seat=seat,
            seed=self.seed,
            base_view=view,
            holdings=Holdings(
                members=tuple(sorted(dealings)),
                edges=tuple(KeptEdge(peer=peer, seed=edges[peer].seed) for peer in leaves if peer not in removed),
                held=tuple(held[dealer] for dealer in sorted(held)),
            ),
            disputed=tuple(disputed),
        )

    def _read_leaves(self, request: MaskedInputRequest, verify: Verify) -> dict[int, DealtLeaf]:
        """The leaves for this client by dealer, each under the root that its dealer signed."""
        seat = self.seat
        u1 = [advert.sender for advert in self.adverts]
        if request.context != seat.context or not {part.sender for part in request.dealt} <= set(u1):
            raise DecodeError("a request of another round, or a dealer that did not advertise")
        if len(request.dealt) < seat.config.threshold:
            raise DecodeError(f"{len(request.dealt)} members dealt, {seat.config.threshold} are needed")
        own = [part for part in request.dealt if part.sender == seat.index]
        if len(own) != 1 or own[0].root != self.root or own[0].leaf or own[0].path:
            raise DecodeError("this client's own dealing is missing or changed")
        self._check_root(own[0], verify)
        place = u1.index(seat.index)
        return {part.sender: self._read_leaf(part, place, len(u1), verify) for part in request.dealt if part.sender != seat.index}

    def _read_leaf(self, part: DealtPart, place: int, size: int, verify: Verify) -> DealtLeaf:
        self._check_root(part, verify)
        verify_inclusion(leaf_hash(part.leaf), place, size, part.path, part.root)
        leaf = DealtLeaf.decode(part.leaf)
        if leaf.receiver != self.seat.index:
            raise DecodeError("a leaf for another receiver")
        return leaf

    def _check_root(self, part: DealtPart, verify: Verify) -> None:
        verify_statement(self._dealing(part), part.signature, member=self.seat.members[part.sender], verify=verify)

    def _dealing(self, part: DealtPart) -> Dealing:
        return Dealing(context=self.seat.context, sender=part.sender, root=part.root)

    def _check_removed(self, request: MaskedInputRequest, leaves: dict[int, DealtLeaf]) -> set[int]:
        """The peers whose edge with this client is removed: those whose signed tag differs from its own, exactly."""
        index = self.seat.index
        members = {*leaves, index}
        if any(edge.low not in members or edge.high not in members for edge in request.removed):
            raise DecodeError("a removed edge of a member that did not deal")
        claimed = {edge.high if edge.low == index else edge.low for edge in request.removed if index in (edge.low, edge.high)}
        differing = {edge.peer for edge in self.pairs if edge.peer in leaves and leaves[edge.peer].tag != edge.tag}
        if claimed != differing:
            raise DecodeError("the removed edges are not those whose signed tags differ")
        if len(differing) > self.seat.config.num_corrupt:
            raise DecodeError(f"{len(differing)} of this client's edges are removed, over c = {self.seat.config.num_corrupt}")
        return differing
