"""What a member saw of the round, as one hash: members with different views never help each other to an opening.

1. The *base view* covers the context, U1 and its adverts, U2 and its dealings, and the removed edges. It is signed from MASKED_INPUT on.
2. The *view* adds the inputs of all cohorts and the seed of R. It is signed from SKETCH on.
3. All hashes cover contents, in the order of the roster, with every member's index beside its part.

Source: design note SECAGG, "View"; decision 0010, finding 18.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fedsec.codec import digest
from fedsec.secagg.labels import DIGEST_BYTES, Label
from fedsec.secagg.messages import ConsistencyRequest, RemovedEdge


def _index(value: int) -> bytes:
    return value.to_bytes(2, "big")


def _members(members: Iterable[int]) -> bytes:
    return b"".join(_index(member) for member in members)


def _indexed(parts: Mapping[int, bytes]) -> list[bytes]:
    return [_index(index) + parts[index] for index in sorted(parts)]


def base_view(context: bytes, adverts: Mapping[int, bytes], dealings: Mapping[int, bytes], removed: Sequence[RemovedEdge]) -> bytes:
    """The view after MASKED_INPUT's request.

    Args:
        context: of the round.
        adverts: contents of the adverts of U1, by index.
        dealings: contents of the dealings of U2, by index.
        removed: edges whose tags differ.
    """
    edges = b"".join(_index(edge.low) + _index(edge.high) for edge in removed)
    first, second = digest(Label.ADVERTS, *_indexed(adverts)), digest(Label.DEALINGS, *_indexed(dealings))
    return digest(Label.BASE_VIEW, context, _members(sorted(adverts)), first, _members(sorted(dealings)), second, edges)


def input_digest(content: bytes) -> bytes:
    """The leaf of one signed input."""
    return digest(Label.INPUT, content)


def input_root(context: bytes, leaves: Mapping[int, bytes]) -> bytes:
    """One hash over the inputs of a cohort, by index."""
    return digest(Label.INPUTS, context, *_indexed(leaves))


def group_root(cohort_roots: Sequence[bytes]) -> bytes:
    """One hash over the inputs of all cohorts that share one R, in the order of cohorts."""
    return digest(Label.GROUP, *cohort_roots)


def sketch_view(base: bytes, group: bytes, matrix_seed: bytes) -> bytes:
    """The view after SKETCH's request."""
    return digest(Label.VIEW, base, group, matrix_seed)


def agreement_digest(view: bytes, request: ConsistencyRequest) -> bytes:
    """What a consent signs: the accepted and the rejected set under a view."""
    return agreement_digest_of(request.context, view, [part.sender for part in request.accepted], request.rejected)


def agreement_digest_of(context: bytes, view: bytes, accepted: Iterable[int], rejected: Iterable[int]) -> bytes:
    """The same, of the bare sets in increasing order."""
    return digest(Label.AGREEMENT, context, view, _members(accepted), _members(rejected))


def sketch_commitment(context: bytes, sender: int, salt: bytes, sketch: bytes) -> bytes:
    """The commitment that peers see instead of a sketch."""
    return digest(Label.SKETCH, context, _index(sender), salt, sketch)


def share_hash(context: bytes, dealer: int, holder: int, *, of_key: bool, share: bytes) -> bytes:
    """What a dealer signs of a share: hiding, since a share is 255 random bits."""
    return digest(Label.SHARE, context, _index(dealer), _index(holder), b"key" if of_key else b"seed", share)


def vector_hash(context: bytes, sender: int, vector: npt.NDArray[np.uint32]) -> bytes:
    """BLAKE2b-256 of an upload: the fastest of the standard hashes where SHA has no instructions of its own."""
    state = hashlib.blake2b(digest_size=DIGEST_BYTES, person=Label.VECTOR.encode(), key=context)
    state.update(_index(sender))
    state.update(np.ascontiguousarray(vector, dtype="<u4").data)
    return state.digest()
