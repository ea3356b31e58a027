"""What the rows of a CA's register mean, and how they are read back; see ``identity.register``."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any

from fedsec.identity.names import Role, uri_of
from fedsec.identity.revocation import Reason


class JournalKind(IntEnum):
    """What an entry of the journal is about: the numbers of ``translog.entries.EntryKind``, which this layer does not import."""

    ROSTER = 1
    CERTIFICATE = 5
    REVOCATION = 6


@dataclass(frozen=True, kw_only=True)
class Record:
    """One certificate that was issued.

    Attributes:
        serial_number: its number.
        role: what its holder is.
        site: a node's organisation.
        name: the holder's.
        public_key: 33 bytes.
        not_before: UTC.
        not_after: UTC.
        certificate_der: it.
        issued_at: UTC.
        origin: ``token``, ``renewal`` or ``offline``.
        revoked_at: when it was revoked, or None.
        reason: why, or None.
    """

    serial_number: int
    role: Role
    site: str | None
    name: str
    public_key: bytes
    not_before: datetime
    not_after: datetime
    certificate_der: bytes = field(repr=False)
    issued_at: datetime
    origin: str
    revoked_at: datetime | None = None
    reason: Reason | None = None


@dataclass(frozen=True)
class Binding:
    """Whose a name is."""

    role: Role
    site: str | None
    name: str
    public_key: bytes


@dataclass(frozen=True)
class Document:
    """The newest list of one kind, with its number and signature; a revocation list's signature is inside it."""

    number: int
    body: bytes = field(repr=False)
    signature: bytes = field(repr=False)


@dataclass(frozen=True)
class Alarm:
    """A token that was used was shown again with another key: either the right device came second, or somebody copied the token.

    Attributes:
        role: for whom the token was.
        site: a node's organisation.
        name: whose name.
        serial_number: of the certificate that the token brought.
        first_at: when it was shown again first; UTC.
        last_at: when last.
        times: how often.
    """

    role: Role
    site: str | None
    name: str
    serial_number: int
    first_at: datetime
    last_at: datetime
    times: int


def read_alarm(row: tuple[Any, ...]) -> Alarm:
    """A row of the alarms' table; raises as :func:`read_record`."""
    return Alarm(Role(row[0]), row[1], row[2], int(row[3], 16), _time(row[4]), _time(row[5]), int(row[6]))


def read_record(row: tuple[Any, ...]) -> Record:
    """A row of the certificates' table.

    Raises:
        ValueError, TypeError, OverflowError, OSError, CertificateError: no code of ours wrote it.
    """
    role = Role(row[1])
    uri_of("x", role, row[2], row[3])
    return Record(
        serial_number=int(row[0], 16),
        role=role,
        site=row[2],
        name=row[3],
        public_key=row[4],
        not_before=_time(row[5]),
        not_after=_time(row[6]),
        certificate_der=row[7],
        issued_at=_time(row[8]),
        origin=row[9],
        revoked_at=None if row[10] is None else _time(row[10]),
        reason=None if row[11] is None else Reason(row[11]),
    )


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, tz=UTC)
