"""The list of a federation's clients, signed by its CA: who takes part, with which keys, drawn into cohorts by which seed.

1. The signature is the intermediate's, under a label of its own. The server cannot add a client: clients check the list.
2. A list has one encoding (canonical JSON) and is bound into protocols by its digest.
3. Members are sorted; ids, keys and certificates are distinct, the server's own included: nobody counts twice.
4. The cohort seed is drawn after the members are known. The same clients, keys and cohort size keep it in the next version: a list
   that is issued again is no second draw.
5. A list is valid for a period and has a version; who has seen version n accepts none below it, so an old list cannot be replayed.
6. Only :func:`verify_roster` makes a :class:`VerifiedRoster`.

Source: design note IDENTITY, "Certificates".
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Iterable
from dataclasses import InitVar, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from fedsec.codec import MAX_JSON_BYTES, canonical_json, decode_canonical_json, digest
from fedsec.errors import CertificateError, DecodeError
from fedsec.identity.intermediates import AcceptedIntermediates
from fedsec.identity.names import check_name
from fedsec.identity.verify import BACKDATE, check_issuers
from fedsec.jsonfields import INTEGER, TEXT, Codec, Table, build, dump, list_of
from fedsec.signing import PUBLIC_KEY_BYTES, Signer, verify_signature

ROSTER_LABEL = "fedsec/identity/v1/roster"
"""What the intermediate's signature stands under."""

DIGEST_LABEL = "fedsec/identity/v1/roster-digest"
"""What the digest of a verified list stands under."""

ROSTER_FORMAT = 1
MAX_MEMBERS = 1 << 16
SEED_BYTES = 32
FINGERPRINT_BYTES = 32
ROSTER_LIFETIME = timedelta(days=365)
"""Usual period of a list."""

R = TypeVar("R")

_VERIFIED = object()


def _check_length(what: str, value: bytes, size: int) -> None:
    if len(value) != size:
        raise ValueError(f"{what} has {len(value)} bytes, expected {size}")


def _check_key(what: str, key: bytes) -> None:
    _check_length(what, key, PUBLIC_KEY_BYTES)
    if key[0] not in (2, 3):  # whether it is a point shows when a signature is verified
        raise ValueError(f"{what} is not a compressed point")


@dataclass(frozen=True)
class RosterMember:
    """One client.

    Attributes:
        client_id: its name in the federation.
        public_key: 33 bytes.
        certificate_fingerprint: SHA-256 of its certificate at the time of the list, 32 bytes.

    Raises:
        ValueError: a length or prefix is wrong.
        CertificateError: the id may not stand in a SPIFFE id.
    """

    client_id: str
    public_key: bytes
    certificate_fingerprint: bytes

    def __post_init__(self) -> None:
        check_name("client id", self.client_id)
        _check_key("a member's key", self.public_key)
        _check_length("a certificate's fingerprint", self.certificate_fingerprint, FINGERPRINT_BYTES)


@dataclass(frozen=True, kw_only=True)
class Roster:
    """The list; sound, but not proven to come from anybody.

    Attributes:
        federation: its trust domain.
        version: 1 for the first list, more for each later one.
        not_before: start of its period; UTC, whole seconds.
        not_after: end of its period, inclusive; UTC, whole seconds.
        cohort_seed: 32 bytes; public.
        cohort_size: largest number of members of a cohort.
        server_public_key: of the aggregator, 33 bytes.
        server_fingerprint: SHA-256 of its certificate, 32 bytes.
        members: sorted by client id.

    Raises:
        ValueError: a value out of range, or a client, key or certificate twice.
        CertificateError: a name may not stand in a SPIFFE id.
    """

    federation: str
    version: int
    not_before: datetime
    not_after: datetime
    cohort_seed: bytes
    cohort_size: int
    server_public_key: bytes
    server_fingerprint: bytes
    members: tuple[RosterMember, ...]

    def __post_init__(self) -> None:
        check_name("federation", self.federation)
        _check_key("the server's key", self.server_public_key)
        _check_length("the server's fingerprint", self.server_fingerprint, FINGERPRINT_BYTES)
        _check_length("the cohort seed", self.cohort_seed, SEED_BYTES)
        if not 1 <= self.version < 1 << 53 or not 1 <= self.cohort_size <= MAX_MEMBERS:
            raise ValueError(f"version {self.version} or cohort size {self.cohort_size} is out of range")
        if any(time.utcoffset() != timedelta(0) or time.microsecond for time in (self.not_before, self.not_after)):
            raise ValueError("times are in UTC and whole seconds")
        if not self.not_before < self.not_after:
            raise ValueError("the period is empty")
        self._check_members()

    def _check_members(self) -> None:
        if not 1 <= len(self.members) <= MAX_MEMBERS:
            raise ValueError(f"{len(self.members)} members, expected 1 to {MAX_MEMBERS}")
        ids = [member.client_id for member in self.members]
        if ids != sorted(set(ids)):
            raise ValueError("members are not sorted, or a client is in the list twice")
        if len({self.server_public_key, *(member.public_key for member in self.members)}) != len(ids) + 1:
            raise ValueError("a key is in the list twice")
        if len({self.server_fingerprint, *(member.certificate_fingerprint for member in self.members)}) != len(ids) + 1:
            raise ValueError("a certificate is in the list twice")

    @functools.cached_property
    def by_id(self) -> dict[str, RosterMember]:
        """The members by their ids."""
        return {member.client_id: member for member in self.members}

    def encode(self) -> bytes:
        """Canonical JSON.

        Raises:
            ValueError: longer than a record may be (ids of over 60 characters in the largest lists).
        """
        data = canonical_json({"format": ROSTER_FORMAT, **dump(_TABLE, self)})
        if len(data) > MAX_JSON_BYTES:
            raise ValueError(f"a list of {len(data)} bytes is over the limit of {MAX_JSON_BYTES}")
        return data

    @staticmethod
    def decode(data: bytes) -> Roster:
        """Read what :meth:`encode` wrote.

        Raises:
            DecodeError: anything else.
        """
        value = decode_canonical_json(data)
        if not isinstance(value, dict) or INTEGER.read(value.pop("format", 0), "roster.format") != ROSTER_FORMAT:
            raise DecodeError(f"not a roster of format {ROSTER_FORMAT}")
        return _build(Roster, _TABLE, value, "roster")


@dataclass(frozen=True)
class SignedRoster:
    """An encoded list and the CA's signature; nothing is checked yet.

    Attributes:
        roster_bytes: of :meth:`Roster.encode`.
        signature: 64 bytes.
    """

    roster_bytes: bytes
    signature: bytes


@dataclass(frozen=True)
class VerifiedRoster:
    """A list that the federation's CA signed; made by :func:`verify_roster` only.

    Attributes:
        roster: the list.
        digest: 32 bytes that stand for exactly this list.
    """

    roster: Roster
    digest: bytes
    token: InitVar[object]

    def __post_init__(self, token: object) -> None:
        if token is not _VERIFIED:
            raise TypeError("only verify_roster makes a VerifiedRoster")


def make_roster(
    signer: Signer,
    *,
    federation: str,
    members: Iterable[RosterMember],
    cohort_size: int,
    server_public_key: bytes,
    server_fingerprint: bytes,
    now: datetime,
    lifetime: timedelta = ROSTER_LIFETIME,
    previous: Roster | None = None,
) -> SignedRoster:
    """The CA's side: close the list, draw the cohort seed, sign.

    Args:
        signer: of the intermediate's key.
        federation: its trust domain.
        members: all clients, in any order.
        cohort_size: largest number of members of a cohort.
        server_public_key: of the aggregator.
        server_fingerprint: SHA-256 of its certificate.
        now: aware; the period begins five minutes before.
        lifetime: the period ends that long after ``now``.
        previous: the list that this one replaces; its version is counted on, and its seed kept if the clients, keys and cohort size are
            the same.

    Raises:
        ValueError: as for :class:`Roster`, or the previous list is another federation's.
        CertificateError: a name may not stand in a SPIFFE id.
    """
    closed = tuple(sorted(members, key=lambda member: member.client_id))
    if previous is not None and previous.federation != federation:
        raise ValueError(f"the previous list is of the federation {previous.federation}")
    keep = previous is not None and previous.cohort_size == cohort_size and _clients(previous.members) == _clients(closed)
    moment = now.astimezone(UTC).replace(microsecond=0)
    roster = Roster(
        federation=federation,
        version=1 if previous is None else previous.version + 1,
        not_before=moment - BACKDATE,
        not_after=moment + lifetime,
        cohort_seed=previous.cohort_seed if previous is not None and keep else secrets.token_bytes(SEED_BYTES),
        cohort_size=cohort_size,
        server_public_key=server_public_key,
        server_fingerprint=server_fingerprint,
        members=closed,
    )
    encoded = roster.encode()
    return SignedRoster(encoded, signer.sign(ROSTER_LABEL, encoded))


def verify_roster(
    signed: SignedRoster,
    *,
    intermediate_der: bytes,
    root_der: bytes,
    federation: str,
    now: datetime,
    minimum_version: int = 0,
    accepted: AcceptedIntermediates | None = None,
) -> VerifiedRoster:
    """Check a list.

    Args:
        signed: the list as it came.
        intermediate_der: the CA that should have signed it.
        root_der: the pinned root.
        federation: whose list it must be.
        now: aware; list and issuers must be valid then.
        minimum_version: the highest version seen so far.
        accepted: the root's newest statement that the verifier has.

    Raises:
        SignatureError: not signed by the intermediate.
        DecodeError: signed, but not the encoding of a sound list.
        CertificateError: unsound issuers, another federation, outside its period, or older than ``minimum_version``.
        ValueError: ``now`` is naive.
    """
    issuers = check_issuers(intermediate_der, root_der)
    issuers.check(federation=federation, now=now, accepted=accepted)
    verified = _verify_signature(signed, issuers.public_key)
    roster = verified.roster
    if roster.federation != federation:
        raise CertificateError(f"roster: of the federation {roster.federation}, not {federation}")
    if not roster.not_before <= now <= roster.not_after:
        raise CertificateError(f"roster: valid from {_write_time(roster.not_before)} to {_write_time(roster.not_after)}, not now")
    if roster.version < minimum_version:
        raise CertificateError(f"roster: version {roster.version} was replaced by {minimum_version}")
    return verified


@functools.lru_cache(maxsize=16)
def _verify_signature(signed: SignedRoster, public_key: bytes) -> VerifiedRoster:
    """Remembered: a list of 1000 clients takes milliseconds to read, and is checked in every round."""
    verify_signature(public_key, ROSTER_LABEL, signed.roster_bytes, signed.signature)
    return VerifiedRoster(Roster.decode(signed.roster_bytes), digest(DIGEST_LABEL, signed.roster_bytes), _VERIFIED)


def _clients(members: Iterable[RosterMember]) -> list[tuple[str, bytes]]:
    return [(member.client_id, member.public_key) for member in members]


def _build(cls: type[R], table: Table, value: Any, what: str) -> R:
    try:
        return build(cls, table, value, what)
    except CertificateError as error:
        raise DecodeError(f"{what}: {error}") from None


def _read_bytes(value: Any, what: str) -> bytes:
    text = TEXT.read(value, what)
    try:
        data = bytes.fromhex(text)
    except ValueError:
        raise DecodeError(f"{what} is not hexadecimal") from None
    if data.hex() != text:
        raise DecodeError(f"{what} is not lower-case hexadecimal")
    return data


def _write_time(time: datetime) -> str:
    return time.replace(tzinfo=None).isoformat() + "Z"


def _read_time(value: Any, what: str) -> datetime:
    text = TEXT.read(value, what)
    try:
        time = datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        raise DecodeError(f"{what} is not a time of the form 2030-01-31T12:00:00Z") from None
    if _write_time(time) != text:
        raise DecodeError(f"{what} is not a time in its one spelling")
    return time


_BYTES = Codec(bytes.hex, _read_bytes)
_TIME = Codec(_write_time, _read_time)
_MEMBER_TABLE: Table = {"client_id": TEXT, "public_key": _BYTES, "certificate_fingerprint": _BYTES}
_MEMBER = Codec(lambda member: dump(_MEMBER_TABLE, member), lambda value, what: _build(RosterMember, _MEMBER_TABLE, value, what))
_TABLE: Table = {
    "federation": TEXT,
    "version": INTEGER,
    "not_before": _TIME,
    "not_after": _TIME,
    "cohort_seed": _BYTES,
    "cohort_size": INTEGER,
    "server_public_key": _BYTES,
    "server_fingerprint": _BYTES,
    "members": list_of(_MEMBER),
}
