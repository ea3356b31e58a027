"""OPEN: from released shares to the sum over the accepted members, and the checks that it must pass before anything uses it.

1. A share counts only if it is the one whose hash its dealer signed; t of them give the secret, which must be the one that the dealer
   committed to (self-mask seed) or whose public key it advertised (mask key). A dealer that fails this is named: ``evidence.py``.
2. Of an accepted member the self-mask is taken off, of a rejected one the pair masks that accepted members share with it. What remains is
   the sum of the accepted inputs, and nothing else opens.
3. The sum must lie within n·L, and **R·X = Σ s must hold exactly, over the integers**. If not, it is not used: BLAME follows.

Source: Bonawitz et al. 2017, figure 4, round 4; design note SECAGG, stages 6 and 7.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedsec.errors import DecodeError, LocalProtocolError, RoundAborted, VerificationError
from fedsec.secagg.fixedpoint import IntVector, RingVector
from fedsec.secagg.keys import PrivateKey
from fedsec.secagg.labels import Phase
from fedsec.secagg.masking import PairEnd, apply_masks, pair_mask_key, pair_seed, seed_commitment, self_mask_key
from fedsec.secagg.seat import MakeMatrix, plain_matrix
from fedsec.secagg.server import CohortServer
from fedsec.secagg.shamir import LagrangeBasis
from fedsec.secagg.sketch import verify_opening


class OpeningFailed(VerificationError):  # noqa: N818 - the design's name for it
    """The opened sum is not what the sketches say: it must not be used; BLAME may tell why."""


@dataclass(frozen=True, kw_only=True)
class BadDealing:
    """A dealer whose shares match its hashes but do not give the secret that it committed to.

    Attributes:
        dealer: its index.
        shares: t of them, by holder.
    """

    dealer: int
    shares: dict[int, bytes] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Secrets:
    """What the shares gave: of every member of U2 one secret.

    Attributes:
        seeds: self-mask seeds of the accepted members.
        keys: mask keys of the others.
    """

    seeds: dict[int, bytes] = field(repr=False)
    keys: dict[int, bytes] = field(repr=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class Opened:
    """A sum that passed every check; only :func:`open_round` makes one.

    Attributes:
        total: int32 [d]: the sum of the encoded updates of the accepted members.
        accepted: who is in it.
        weights: their declared weights, by index.
    """

    total: IntVector
    accepted: tuple[int, ...]
    weights: dict[int, int]


def combine_secrets(server: CohortServer) -> tuple[Secrets, tuple[BadDealing, ...]]:
    """The secret of every member of U2, or the proof that its dealing was bad.

    Raises:
        RoundAborted: fewer than t sound shares of somebody came; nothing can be opened.
        LocalProtocolError: UNMASK is not over.
    """
    if server.phase is not Phase.DONE:
        raise LocalProtocolError("shares are combined after UNMASK")
    seeds, keys, bad = {}, {}, []
    bases: dict[tuple[int, ...], LagrangeBasis] = {}
    threshold, accepted = server.config.threshold, set(server.accepted)
    for owner in sorted(server.dealings):
        holders = [holder for holder in sorted(server.released) if owner in server.released[holder].shares][:threshold]
        if len(holders) < threshold:
            raise RoundAborted(f"{len(holders)} shares of {server.members[owner].client_id} came, {threshold} are needed")
        points = tuple(holder + 1 for holder in holders)
        basis = bases.setdefault(points, LagrangeBasis.at_zero(points, threshold=threshold))
        shares = {holder: server.released[holder].shares[owner] for holder in holders}
        if (secret := _combine(basis, list(shares.values()))) is None or not _is_committed(server, owner, secret, owner in accepted):
            bad.append(BadDealing(dealer=owner, shares=shares))
        elif owner in accepted:
            seeds[owner] = secret
        else:
            keys[owner] = secret
    return Secrets(seeds=seeds, keys=keys), tuple(bad)


def _combine(basis: LagrangeBasis, shares: Sequence[bytes]) -> bytes | None:
    try:
        return basis.combine(shares)
    except DecodeError:  # the dealer signed the hash of bytes that are no field element
        return None


def _is_committed(server: CohortServer, owner: int, secret: bytes, is_accepted: bool) -> bool:
    advert, _ = server.adverts[owner]
    if is_accepted:
        return seed_commitment(secret) == advert.seed_commitment
    return PrivateKey(secret).public_key == advert.mask_key


def opened_edges(server: CohortServer, secrets: Secrets) -> dict[tuple[int, int], bytes]:
    """Mask keys of the edges between an accepted and a rejected member, by (accepted, rejected); removed edges have none."""
    removed = {pair for edge in server.removed for pair in ((edge.low, edge.high), (edge.high, edge.low))}
    ends = {index: PairEnd(index=index, public_key=advert.mask_key) for index, (advert, _) in server.adverts.items()}
    edges = {}
    for rejected, key in secrets.keys.items():
        private = PrivateKey(key)
        for accepted in server.accepted:
            if (accepted, rejected) not in removed:
                shared = private.exchange(ends[accepted].public_key)
                seed = pair_seed(shared, server.context, ends[accepted], ends[rejected])
                edges[accepted, rejected] = pair_mask_key(seed, server.context)
    return edges


def remove_masks(
    vector: RingVector, server: CohortServer, secrets: Secrets, members: Sequence[int], opened: Mapping[tuple[int, int], bytes]
) -> None:  # fmt: skip
    """Take off, in place, every opened mask that the uploads of ``members`` carry; ``opened`` is what :func:`opened_edges` gave."""
    chosen = set(members)
    edges = {pair: key for pair, key in opened.items() if pair[0] in chosen}
    apply_masks(
        vector,
        added=[key for (own, peer), key in edges.items() if own > peer],
        subtracted=[
            *(self_mask_key(secrets.seeds[member], server.context) for member in members),
            *(key for (own, peer), key in edges.items() if own < peer),
        ],
    )


def open_round(server: CohortServer, secrets: Secrets, *, matrix: MakeMatrix = plain_matrix) -> Opened:
    """The sum over A, checked.

    Args:
        server: after UNMASK.
        secrets: of all of U2; see :func:`combine_secrets`.
        matrix: how to make R.

    Raises:
        OpeningFailed: out of range, or not what the sketches say.
        LocalProtocolError: a secret is missing.
    """
    if secrets.seeds.keys() | secrets.keys.keys() != server.dealings.keys():
        raise LocalProtocolError("an opening takes the secrets of all members of U2")
    config = server.config
    total = np.zeros(config.dimension, dtype=np.uint32)
    for member in server.accepted:
        np.add(total, server.inputs[member].vector, out=total)
    remove_masks(total, server, secrets, server.accepted, opened_edges(server, secrets))
    try:
        lifted = config.fixed_point.lift(total)
        sketches = np.stack([server.sketches[member].sketch for member in server.accepted])
        verify_opening(matrix(server.matrix_seed, config.num_rows, config.dimension), lifted, sketches)
    except VerificationError as error:
        raise OpeningFailed(str(error)) from None
    return Opened(total=lifted, accepted=server.accepted, weights={m: server.adverts[m][0].weight for m in server.accepted})
