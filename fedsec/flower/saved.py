"""A group as it stood before UNMASK was asked for, on disk: with it a restarted server opens the round instead of losing it.

1. Written once an attempt, before the first UNMASK request. What is in it the server knew already: adverts, dealings, masked vectors, sketches and
   consents, all signed. Reading replays them through the same machine, which checks every signature again.
2. The replay gives the same agreement and the same certificate, so the request is the same, and clients that answered before send the same bytes.
3. A group of over ``MAX_SAVED_BYTES`` is not saved: its round is lost if the server dies in UNMASK.

Source: design note SECAGG, "Outbox" and "Attempts": nothing is asked in two forms, and no attempt is continued but in UNMASK.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedsec.errors import DecodeError, FedsecError, LocalProtocolError, StorageError
from fedsec.files import atomic_write_bytes
from fedsec.secagg.config import Member, RoundConfig
from fedsec.secagg.group import GroupServer
from fedsec.secagg.labels import MAX_COHORT, MAX_COHORTS, SEED_BYTES, Phase
from fedsec.secagg.messages import DIGEST, INDEX, MEMBERS, Consent, Envelope
from fedsec.secagg.server import CohortServer
from fedsec.secagg.wire import Fixed, ListOf, Part, Parted, Record
from fedsec.signing import Verify

MAX_SAVED_BYTES = 1 << 28


@dataclass(frozen=True, kw_only=True)
class SavedMessage(Parted):
    """One member's message."""

    FIELDS = (("sender", INDEX), ("envelope", Part(Envelope)))
    sender: int
    envelope: Envelope


_MESSAGES = ListOf(Part(SavedMessage), MAX_COHORT)


@dataclass(frozen=True, kw_only=True)
class SavedCohort(Parted):
    """One cohort: what it was about, and what its members said, stage by stage."""

    FIELDS = (
        ("config", Part(RoundConfig)),
        ("excluded", MEMBERS),
        ("adverts", _MESSAGES),
        ("dealings", _MESSAGES),
        ("inputs", _MESSAGES),
        ("sketches", _MESSAGES),
        ("accepted", MEMBERS),
        ("consents", _MESSAGES),
    )
    config: RoundConfig
    excluded: tuple[int, ...]
    adverts: tuple[SavedMessage, ...]
    dealings: tuple[SavedMessage, ...]
    inputs: tuple[SavedMessage, ...]
    sketches: tuple[SavedMessage, ...]
    accepted: tuple[int, ...]
    consents: tuple[SavedMessage, ...]


@dataclass(frozen=True, kw_only=True)
class SavedGroup(Record):
    """All cohorts that are about to unmask."""

    TYPE = 80
    FIELDS = (
        ("cohorts", ListOf(Part(SavedCohort), MAX_COHORTS)),
        ("cohort_roots", ListOf(DIGEST, MAX_COHORTS)),
        ("nonce", Fixed(SEED_BYTES)),
    )
    cohorts: tuple[SavedCohort, ...]
    cohort_roots: tuple[bytes, ...]
    nonce: bytes = field(repr=False)


def save_group(path: Path, group: GroupServer) -> bool:
    """Write the running cohorts; False if they are too large to keep.

    Raises:
        StorageError: the file system refused.
    """
    running = list(group.running().values())
    size = sum(len(upload.envelope.attachment) for cohort in running for upload in cohort.inputs.values())
    if size > MAX_SAVED_BYTES or not running:
        path.unlink(missing_ok=True)
        return False
    saved = SavedGroup(
        cohorts=tuple(_saved(cohort) for cohort in running), cohort_roots=running[0].cohort_roots, nonce=group.nonce
    )  # fmt: skip
    atomic_write_bytes(path, saved.encode(), mode=0o600)
    return True


def load_group(
    path: Path, members: Callable[[int], Sequence[Member]], verify: Verify, *, roster_hash: bytes | None = None
) -> GroupServer | None:  # fmt: skip
    """The group in the file, in phase UNMASK; None where there is no file, or where the CA's list is another by now: that round is lost.

    Args:
        path: the file.
        members: cohort number → its members.
        verify: checks signatures.
        roster_hash: of the list that the server goes by; None: whatever it was.

    Raises:
        StorageError: damaged, or not of this federation.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        saved = SavedGroup.decode(data)
        if roster_hash is not None and any(item.config.roster_hash != roster_hash for item in saved.cohorts):
            return None
        cohorts = {item.config.cohort: _replayed(item, saved, members(item.config.cohort), verify) for item in saved.cohorts}
    except (FedsecError, DecodeError, ValueError, IndexError) as error:
        raise StorageError(f"{path} is damaged ({error}); remove it: the round that it holds is lost then") from None
    return GroupServer(cohorts=cohorts, nonce=saved.nonce)


def _saved(cohort: CohortServer) -> SavedCohort:
    def messages(envelopes: dict[int, Envelope]) -> tuple[SavedMessage, ...]:
        return tuple(SavedMessage(sender=sender, envelope=envelopes[sender]) for sender in sorted(envelopes))

    def consent(sender: int) -> Envelope:
        statement = Consent(context=cohort.context, sender=sender, view=cohort.view, agreement=cohort.agreement)
        return Envelope(content=statement.encode(), signature=cohort.consents[sender])

    return SavedCohort(
        config=cohort.config,
        excluded=tuple(sorted(cohort.excluded)),
        adverts=messages({sender: envelope for sender, (_, envelope) in cohort.adverts.items()}),
        dealings=messages({sender: dealt.envelope for sender, dealt in cohort.dealings.items()}),
        inputs=messages({sender: upload.envelope for sender, upload in cohort.inputs.items()}),
        sketches=messages({sender: made.envelope for sender, made in cohort.sketches.items()}),
        accepted=cohort.accepted,
        consents=messages({sender: consent(sender) for sender in cohort.consents}),
    )


def _replayed(saved: SavedCohort, group: SavedGroup, members: Sequence[Member], verify: Verify) -> CohortServer:
    cohort = CohortServer(config=saved.config, members=members, verify=verify, excluded=frozenset(saved.excluded))
    stages = (saved.adverts, saved.dealings, saved.inputs, saved.sketches, saved.consents)
    for stage in stages:
        if cohort.phase is Phase.SKETCH:
            cohort.open_nonce(group.cohort_roots, group.nonce)
        for message in stage:
            cohort.receive(message.sender, message.envelope.encode())
        if cohort.phase is Phase.SKETCH:
            cohort.decide(saved.accepted)
        else:
            cohort.close()
    if cohort.phase is not Phase.UNMASK:
        raise LocalProtocolError("a saved cohort that is not about to unmask")
    return cohort
