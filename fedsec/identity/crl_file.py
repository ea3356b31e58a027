"""A verified revocation list on disk, and the floor below which none counts: shared by an agent, which writes, and a ClientApp, which reads.

1. The list is verified whenever it is read: chain, signature, number, end. What cannot be verified now is an error, never an empty list.
2. The floor is the number and the digest of the newest list that was taken: an older one is refused, and so is **another of the same
   number** (a CA put back from a copy, or two CAs with one key). It is a file of its own and outlives the list: a list that was
   deleted is missing, not forgotten.
3. The list is written first, then the floor: whoever reads in between finds a list above the floor, which is sound.
4. Only a holder that keeps the floor in its place (the agent) writes; readers change nothing.

Source: decision 0015, findings 13 and 30.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fedsec.errors import CertificateError, StorageError
from fedsec.files import atomic_write_bytes, atomic_write_text
from fedsec.identity.intermediates import AcceptedIntermediates
from fedsec.identity.revocation import MAX_CRL_BYTES, MAX_NUMBER, RevocationList, verify_crl

CRL_FILE, FLOOR_FILE = "crl.der", "crl-floor.json"
"""Usual names, beside an identity's folder."""
DEPLOYED_VARIABLE = "FEDSEC_AGENT"
"""Environment variable by which an agent's processes know that they are its: 1. Their client goes by a revocation list in any case."""

_DIGEST_BYTES = 32


@dataclass(frozen=True)
class CrlFloor:
    """The newest list that was taken.

    Attributes:
        number: 0 if there was none.
        sha256: of its bytes; empty if there was none.
    """

    number: int = 0
    sha256: bytes = b""


@dataclass(frozen=True, kw_only=True)
class CrlFile:
    """Where a list lies, and whose it must be.

    Attributes:
        path: of the list.
        floor_path: of the floor.
        intermediate_der: the CA that should have signed it.
        root_der: the pinned root.
        federation: whose list it must be.
        accepted: the root's newest statement that the holder has.
    """

    path: Path
    floor_path: Path
    intermediate_der: bytes
    root_der: bytes
    federation: str
    accepted: AcceptedIntermediates | None = None

    def load(self, *, now: datetime) -> RevocationList:
        """The list that counts now; see :func:`load_verified_crl`."""
        return load_verified_crl(
            self.path,
            self.floor_path,
            intermediate_der=self.intermediate_der,
            root_der=self.root_der,
            federation=self.federation,
            now=now,
            accepted=self.accepted,
        )

    def take(self, der: bytes, *, now: datetime) -> RevocationList:
        """Verify a list that came, and keep it if it is newer than the one that is there.

        Args:
            der: as received.
            now: aware.

        Raises:
            CertificateError: it does not verify, is older than the floor, or another one of the floor's number.
            StorageError: the floor is damaged, or the file system refused.
        """
        floor = read_crl_floor(self.floor_path)
        found = self._verify(der, floor, now)
        if found.number > floor.number or not self.path.exists():
            atomic_write_bytes(self.path, der, mode=0o600)
        if found.number > floor.number:
            floor_text = json.dumps({"number": found.number, "sha256": hashlib.sha256(der).hexdigest()}) + "\n"
            atomic_write_text(self.floor_path, floor_text, mode=0o600)
        return found

    def _verify(self, der: bytes, floor: CrlFloor, now: datetime) -> RevocationList:
        found = verify_crl(
            der,
            intermediate_der=self.intermediate_der,
            root_der=self.root_der,
            federation=self.federation,
            now=now,
            minimum_number=floor.number,
            accepted=self.accepted,
        )
        if found.number == floor.number and not hmac.compare_digest(hashlib.sha256(der).digest(), floor.sha256):
            raise CertificateError(f"revocation list: another one of number {found.number} was seen; the CA's operator must look into that")
        return found


def load_verified_crl(
    path: Path,
    floor_path: Path,
    *,
    intermediate_der: bytes,
    root_der: bytes,
    federation: str,
    now: datetime,
    accepted: AcceptedIntermediates | None = None,
) -> RevocationList:
    """Read a list and check it, floor included.

    Args:
        path: of the list.
        floor_path: of the floor; a missing one is a floor of 0.
        intermediate_der: the CA that should have signed it.
        root_der: the pinned root.
        federation: whose list it must be.
        now: aware.
        accepted: the root's newest statement that the holder has.

    Raises:
        CertificateError: it does not verify, has ended, is older than the floor, or another one of the floor's number.
        StorageError: the list is missing or cannot be read, or the floor is damaged.
    """
    kept = CrlFile(
        path=path, floor_path=floor_path, intermediate_der=intermediate_der, root_der=root_der, federation=federation, accepted=accepted
    )
    return kept._verify(_read(path), read_crl_floor(floor_path), now)  # noqa: SLF001 - same module


def read_crl_floor(path: Path) -> CrlFloor:
    """The floor; that of a missing file is 0.

    Raises:
        StorageError: damaged, or it cannot be read.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        floor = CrlFloor(value["number"], bytes.fromhex(value["sha256"]))
        if type(floor.number) is not int or not 1 <= floor.number <= MAX_NUMBER or len(floor.sha256) != _DIGEST_BYTES or len(value) != 2:
            raise ValueError("out of range")
    except FileNotFoundError:
        return CrlFloor()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{path} is damaged ({error}); remove it to accept whatever list comes next") from None
    return floor


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as handle:
            data = handle.read(MAX_CRL_BYTES + 1)
    except OSError as error:
        raise StorageError(f"no revocation list in {path}: {error.strerror or error}; the agent fetches it from the gateway") from error
    if len(data) > MAX_CRL_BYTES:
        raise StorageError(f"{path} is over the limit of {MAX_CRL_BYTES} bytes")
    return data
