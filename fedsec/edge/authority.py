"""The gateway and the CA's service: lists are fetched and verified before they are written, sound renewals are passed on.

1. The gateway holds no key of the CA. It asks the service that its settings pin by hash, and believes what verifies against its root.
2. The revocation list is asked for every few seconds, the rest less often, or when the revocation list changed.
3. Without a CA in the settings an operator copies the same files; nothing here is then called, and renewals are refused as an outage.
4. The server's own certificate is renewed at two thirds of its life, with the same key.

Calls block, so they run in threads; one at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import grpc

from fedsec.edge import edge_pb2
from fedsec.edge.enrolment_client import EnrolmentUnavailable, VerifiedBundle, ca_channel, fetch_bundle, fetch_crl, renew, verify_bundle
from fedsec.edge.enrolment_frames import Bundle
from fedsec.edge.refusal import Reason, Refused
from fedsec.edge.server_settings import CaSettings
from fedsec.errors import FedsecError, StorageError
from fedsec.files import atomic_write_bytes
from fedsec.identity.enrolment import RenewalRequest, check_renewal, make_renewal
from fedsec.identity.folder import Identity, replace_certificate
from fedsec.identity.intermediates import STATEMENT_FILE, newer_statement
from fedsec.identity.names import check_name
from fedsec.identity.revocation import RevokedError, verify_crl
from fedsec.identity.verify import VerifiedPeer

TIMEOUT_S = 10.0


def _renewal(certificate_der: bytes, request: edge_pb2.RenewRequest) -> RenewalRequest:
    return RenewalRequest(certificate_der=certificate_der, csr=request.csr, time_ms=request.issued_for_ms, signature=request.signature)


def check_request(certificate_der: bytes, peer: VerifiedPeer, request: edge_pb2.RenewRequest, identity: Identity, *, now: datetime) -> None:
    """Refuse a request for renewal that the CA would refuse: all gateways' nodes share the CA's patience.

    Args:
        certificate_der: that the caller showed.
        peer: what it says.
        request: as it came.
        identity: the gateway's, with the issuers.
        now: aware.

    Raises:
        Refused: not signed by the caller's key, for another key, made too long ago, or of a wrong form.
    """
    if request.issued_for_ms >= 1 << 53 or len(request.signature) > 200 or len(request.csr) > 4096:
        raise Refused(Reason.MALFORMED, "a request for renewal that is none")
    chain = {"intermediate_der": identity.intermediate_der, "root_der": identity.root_der}
    try:
        check_renewal(_renewal(certificate_der, request), **chain, federation=identity.name.federation, now=now, accepted=identity.accepted)
    except FedsecError as error:
        raise Refused(Reason.RENEWAL, f"{peer.name.name}: {error}") from None


class NoAuthority:
    """There is no CA in the settings."""

    async def renew(self, certificate_der: bytes, peer: VerifiedPeer, request: edge_pb2.RenewRequest) -> tuple[bytes, bytes]:
        """Refused."""
        del certificate_der, request
        raise Refused(Reason.CA, f"this gateway does not reach the CA; its operator must renew {peer.name.name}'s certificate by hand")


class CaClient:
    """Speaks with the CA's service.

    Args:
        settings: where it is, and the hash of its certificate.
    """

    def __init__(self, settings: CaSettings) -> None:
        self._settings = settings
        self._channel: grpc.Channel | None = None
        self._lock = asyncio.Lock()

    async def renew(self, certificate_der: bytes, peer: VerifiedPeer, request: edge_pb2.RenewRequest) -> tuple[bytes, bytes]:
        """Pass a node's request on; the CA checks it, and so does the node the answer.

        Raises:
            Refused: the CA refuses, or does not answer.
        """
        try:
            return await self.pass_on(_renewal(certificate_der, request))
        except RevokedError as error:
            raise Refused(Reason.REVOKED, str(error)) from None
        except EnrolmentUnavailable as error:
            raise Refused(Reason.CA, str(error)) from None
        except FedsecError as error:
            raise Refused(Reason.RENEWAL, f"{peer.name.name}: {error}") from None

    async def pass_on(self, renewal: RenewalRequest) -> tuple[bytes, bytes]:
        """Certificate and issuer for a request; raises as ``enrolment_client.renew``."""
        async with self._lock:
            enrolled = await asyncio.to_thread(lambda: renew(self._open(), renewal, timeout_s=TIMEOUT_S))
        return enrolled.certificate_der, enrolled.intermediate_der

    async def crl(self) -> bytes:
        """The revocation list, unverified; raises as ``enrolment_client.fetch_crl``."""
        async with self._lock:
            return await asyncio.to_thread(lambda: fetch_crl(self._open(), timeout_s=TIMEOUT_S))

    async def bundle(self) -> Bundle:
        """Everything, unverified; raises as ``enrolment_client.fetch_bundle``."""
        async with self._lock:
            return await asyncio.to_thread(lambda: fetch_bundle(self._open(), timeout_s=TIMEOUT_S))

    def _open(self) -> grpc.Channel:
        if self._channel is None:
            self._channel = ca_channel(self._settings.address, bytes.fromhex(self._settings.fingerprint), timeout_s=TIMEOUT_S)
        return self._channel

    def close(self) -> None:
        """Close the connection."""
        if self._channel is not None:
            self._channel.close()


def _any_twin(_number: int, _der: bytes) -> None:
    """Nothing is known of earlier lists."""


def store_crl(
    folder: Path, der: bytes, identity: Identity, *, now: datetime, minimum_number: int, check: Callable[[int, bytes], None] = _any_twin
) -> bool:
    """Write a revocation list down if it verifies and is not the one that is there.

    Args:
        folder: ``federation/``.
        der: as fetched.
        identity: with the issuers.
        now: aware.
        minimum_number: the highest number seen so far.
        check: told number and content; raises if the number belongs to another list (``Trust.check_twin``).

    Returns:
        Whether it was written.

    Raises:
        CertificateError: it does not verify.
        StorageError: the file system refused.
    """
    path = folder / "crl.der"
    with contextlib.suppress(OSError):
        if path.read_bytes() == der:
            return False
    chain = {"intermediate_der": identity.intermediate_der, "root_der": identity.root_der}
    crl = verify_crl(der, **chain, federation=identity.name.federation, now=now, minimum_number=minimum_number, accepted=identity.accepted)
    check(crl.number, der)
    atomic_write_bytes(path, der)
    return True


def store_bundle(
    folder: Path,
    bundle: Bundle,
    identity: Identity,
    *,
    now: datetime,
    minimum_version: int,
    minimum_number: int,
    check: Callable[[int, bytes], None] = _any_twin,
) -> VerifiedBundle:
    """Write what the CA says down if all of it verifies: certificates first, the list of clients last.

    The root's statement is written before all of that, for it stands by itself: ``Trust`` takes it up.

    Args:
        folder: ``federation/``.
        bundle: as fetched.
        identity: with the root.
        now: aware.
        minimum_version: the highest version of the list seen so far.
        minimum_number: the highest number of the revocation list seen so far.
        check: as of :func:`store_crl`.

    Raises:
        VerificationError, DecodeError: something does not verify; nothing was written.
        StorageError: the file system refused.
    """
    root_der, federation, known = identity.root_der, identity.name.federation, identity.accepted
    if newer_statement(bundle.root_statement, root_der=root_der, federation=federation, known=known) is not None:
        _write_if_other(folder / STATEMENT_FILE, bundle.root_statement)
    found = verify_bundle(
        bundle,
        root_der=root_der,
        federation=federation,
        now=now,
        minimum_version=minimum_version,
        minimum_number=minimum_number,
        known=known,
    )
    check(found.crl.number, bundle.crl)
    certificates = folder / "certificates"
    try:
        certificates.mkdir(mode=0o755, exist_ok=True)
        kept = {f"{check_name('client id', client_id)}.der": der for client_id, der in found.certificates.items()}
        for name, der in kept.items():
            _write_if_other(certificates / name, der)
        for path in certificates.glob("*.der"):
            if path.name not in kept:
                path.unlink()
    except OSError as error:
        raise StorageError(f"cannot write {certificates}: {error.strerror or error}") from error
    _write_if_other(folder / "crl.der", bundle.crl)
    if found.roster is not None:
        _write_if_other(folder / "roster.json", bundle.roster)
        _write_if_other(folder / "roster.signature", bundle.roster_signature)
    return found


def _write_if_other(path: Path, data: bytes) -> None:
    with contextlib.suppress(OSError):
        if path.read_bytes() == data:
            return
    atomic_write_bytes(path, data)


def wants_renewal(identity: Identity, now: datetime) -> bool:
    """Whether two thirds of the certificate's life are over."""
    return now >= identity.not_before + (identity.not_after - identity.not_before) * 2 / 3


async def renew_own(client: CaClient, identity: Identity, folder: Path, *, now: datetime) -> Identity:
    """Renew the server's certificate.

    Args:
        client: of the CA.
        identity: as it is.
        folder: in which it lies.
        now: aware.

    Raises:
        FedsecError: the CA refuses or does not answer, or its answer is not for this identity; the old one stays.
    """
    renewal = make_renewal(identity.signer, identity.certificate_der, time_ms=int(now.timestamp() * 1000))
    certificate, intermediate = await client.pass_on(renewal)
    return replace_certificate(folder, certificate, intermediate)
