"""The rules of a client's privacy ledger: what an entry holds, how entries chain, and when a spend is refused.

1. An entry is written before anything it pays for leaves the client; a crash counts as spent.
2. Entries are never changed or removed: each holds the hash of the one before it, the first one the store's own id.
3. Epsilon is computed over *all* entries, of all runs: a new run, a restart or new records never reset it.
4. A spend that would pass the cap is refused before training, with the numbers.
5. A release without noise makes epsilon infinite, so no finite cap is ever kept after one.

This module is pure: entries in, verdict out. Where entries lie, and that they are written before the release, is
``fedsec.clientstore``'s business. Design: PRIVACY, "The ledger".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Literal, Self

from fedsec.codec import canonical_json, decode_canonical_json, digest
from fedsec.errors import DecodeError, PrivacyBudgetExceeded, StorageError
from fedsec.privacy.accounting import NeighboringRelation, Segment, epsilon_filter, epsilon_prv, epsilon_rdp, known_bound, merge_segments

ENTRY_LABEL = "fedsec/ledger-entry/v1"
GENESIS_LABEL = "fedsec/ledger-genesis/v1"

Mechanism = Literal["dp-sgd", "none"]


@dataclass(frozen=True, kw_only=True)
class Spend:
    """What one round costs.

    Attributes:
        mechanism: ``dp-sgd`` (Poisson-sampled Gaussian steps) or ``none`` (no protection).
        noise_multiplier: noise deviation over clip norm; 0 with ``none``.
        sample_rate: chance of each record to be in a step's batch.
        steps: local steps of the round.
        clip_norm: L2 bound on one record's gradient; 0 with ``none``.
    """

    mechanism: Mechanism
    noise_multiplier: float
    sample_rate: float
    steps: int
    clip_norm: float

    def __post_init__(self) -> None:
        if self.mechanism not in ("dp-sgd", "none"):
            raise ValueError(f"unknown mechanism {self.mechanism!r}")
        if self.mechanism == "dp-sgd" and not (0 < self.noise_multiplier < math.inf and 0 < self.clip_norm < math.inf):
            raise ValueError("dp-sgd needs a noise multiplier and a clip norm over 0")
        if self.mechanism == "none" and (self.noise_multiplier != 0 or self.clip_norm != 0):
            raise ValueError("no mechanism has no noise and no clip norm")
        if self.steps < 1:
            raise ValueError("a round has at least one step")
        self.segment()

    def segment(self) -> Segment:
        """The accountant's view of it."""
        return Segment(noise_multiplier=self.noise_multiplier, sample_rate=self.sample_rate, steps=self.steps)


@dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """One spend, as it stands in the ledger.

    Attributes:
        index: from 0.
        previous_hash: hash of the entry before it, or the store's genesis hash.
        run_id: fedsec's id of the run.
        server_round: from 1.
        attempt: from 1.
        mechanism: see :class:`Spend`; so are noise_multiplier, sample_rate, steps and clip_norm.
        neighboring_relation: what epsilon means.
        dataset_fingerprint: hash of the records trained on; stays with the client.
        policy_digest: hash of the client's own limits at the time.
        model_hash: of the model that was trained.
        created_at: aware UTC, ISO 8601.
    """

    index: int
    previous_hash: str
    run_id: str
    server_round: int
    attempt: int
    mechanism: Mechanism
    noise_multiplier: float
    sample_rate: float
    steps: int
    clip_norm: float
    neighboring_relation: str
    dataset_fingerprint: str
    policy_digest: str
    model_hash: str
    created_at: str

    @property
    def spend(self) -> Spend:
        """What it cost."""
        return Spend(
            mechanism=self.mechanism,
            noise_multiplier=self.noise_multiplier,
            sample_rate=self.sample_rate,
            steps=self.steps,
            clip_norm=self.clip_norm,
        )

    def encode(self) -> bytes:
        """Canonical bytes."""
        return canonical_json({name: getattr(self, name) for name in _FIELDS})

    def entry_hash(self) -> str:
        """Hex hash that the next entry holds."""
        return digest(ENTRY_LABEL, self.encode()).hex()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Inverse of :meth:`encode`.

        Raises:
            DecodeError: not a ledger entry.
        """
        raw = decode_canonical_json(data)
        if not isinstance(raw, dict) or raw.keys() != _FIELDS.keys():
            raise DecodeError("not a ledger entry")
        for name, kind in _FIELDS.items():
            if type(raw[name]) is not kind:
                raise DecodeError(f"ledger field {name} has the wrong type")
        try:
            entry = cls(**raw)
            if entry.neighboring_relation != NeighboringRelation.ADD_REMOVE or entry.index < 0:
                raise ValueError("unknown neighbouring relation, or a negative index")
            entry.spend.segment()
        except ValueError as error:
            raise DecodeError(f"not a ledger entry: {error}") from None
        return entry


_KINDS: dict[str, type] = {"int": int, "float": float, "str": str, "Mechanism": str}
_FIELDS: dict[str, type] = {field.name: _KINDS[str(field.type)] for field in fields(LedgerEntry)}


def genesis_hash(store_id: str) -> str:
    """What the first entry of a store holds as the hash before it."""
    return digest(GENESIS_LABEL, store_id.encode()).hex()


def next_entry(
    entries: Sequence[LedgerEntry],
    spend: Spend,
    *,
    store_id: str,
    run_id: str,
    server_round: int,
    attempt: int,
    dataset_fingerprint: str,
    policy_digest: str,
    model_hash: str,
    now: datetime,
) -> LedgerEntry:
    """The entry that a spend appends.

    Raises:
        ValueError: ``now`` is naive.
    """
    if now.tzinfo is None:
        raise ValueError("the time of an entry must be aware")
    return LedgerEntry(
        index=len(entries),
        previous_hash=entries[-1].entry_hash() if entries else genesis_hash(store_id),
        run_id=run_id,
        server_round=server_round,
        attempt=attempt,
        mechanism=spend.mechanism,
        noise_multiplier=float(spend.noise_multiplier),
        sample_rate=float(spend.sample_rate),
        steps=spend.steps,
        clip_norm=float(spend.clip_norm),
        neighboring_relation=str(NeighboringRelation.ADD_REMOVE),
        dataset_fingerprint=dataset_fingerprint,
        policy_digest=policy_digest,
        model_hash=model_hash,
        created_at=now.astimezone(UTC).isoformat(),
    )


def verify_chain(entries: Sequence[LedgerEntry], *, store_id: str) -> tuple[str, ...]:
    """Hashes of genesis and of every entry in order, after checking that none was changed, removed, added or moved.

    Removing the newest entries cannot be seen here; the store's anchor sees it.

    Raises:
        StorageError: the chain is broken; says where.
    """
    heads = [genesis_hash(store_id)]
    for position, entry in enumerate(entries):
        if entry.index != position or entry.previous_hash != heads[-1]:
            raise StorageError(
                f"the ledger was altered at entry {position}: it may not be used; restore it or ask whoever agreed to the cap"
            )
        heads.append(entry.entry_hash())
    return tuple(heads)


def segments_of(entries: Sequence[LedgerEntry]) -> tuple[Segment, ...]:
    """All spends, merged by equal noise and rate."""
    return merge_segments(entry.spend.segment() for entry in entries)


def authorise(entries: Sequence[LedgerEntry], planned: Spend, *, epsilon_cap: float, delta: float) -> None:
    """Let a spend pass, or refuse it with the numbers, before anything is trained.

    PRV composes mechanisms that were fixed beforehand, so it vouches while all spends are of one mechanism, as those of one run are. A server
    could choose the next mechanism by the last answer; once there are several, a filter that allows for that decides instead
    (:func:`fedsec.privacy.accounting.epsilon_filter`). A server that plays both rules against each other is held to (cap, 2 delta).

    Bounds that cost nothing are tried first: a longer run on record, then RDP; where one of them stays under the cap, PRV does too.

    Args:
        entries: everything spent so far.
        planned: what the round would cost.
        epsilon_cap: the client's own cap; infinite only where it allows unprotected training.
        delta: the delta that the cap is stated at.

    Raises:
        PrivacyBudgetExceeded: the spend would pass the cap.
    """
    if math.isinf(epsilon_cap) and epsilon_cap > 0:
        return
    before = segments_of(entries)
    after = merge_segments([*before, planned.segment()])
    if any(segment.noise_multiplier == 0 for segment in after):
        raise PrivacyBudgetExceeded(math.inf, epsilon_cap, delta=delta)
    if len(after) > 1:
        spent = epsilon_filter(after, delta)
        if not spent <= epsilon_cap:
            raise PrivacyBudgetExceeded(spent, epsilon_cap, delta=delta)
        return
    if known_bound(after, delta, limit=epsilon_cap) is not None or epsilon_rdp(after, delta) <= epsilon_cap:
        return
    spent = epsilon_prv(after, delta)
    if not spent <= epsilon_cap:
        raise PrivacyBudgetExceeded(spent, epsilon_cap, delta=delta, before=epsilon_prv(before, delta) if before else 0.0)
