"""The other side of the enrolment service: for devices, servers, administrators and gateways.

1. The service is whoever holds the key of the certificate whose SHA-256 the token (or the gateway's settings) names: it is fetched,
   compared, and then the only root of the channel. No authority's word, a host name's or the federation's CA's, replaces the hash.
2. What comes back is believed only if it chains to the root whose SHA-256 stands in the token, is for our key, and names exactly whom
   the token names.
3. The key is on disk before the token is spent: if the answer is lost, the same token brings the same certificate (rule 2 of
   ``identity.enrolment``).
4. Lists are verified by :func:`verify_bundle`, against the pinned root; the service's word is not enough.
"""

from __future__ import annotations

import hashlib
import hmac
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import grpc

from fedsec.edge.enrolment_frames import (
    BUNDLE,
    CRL,
    ENROL,
    LOG_KEY_LABEL,
    MAX_REPLY_BYTES,
    MAX_REQUEST_BYTES,
    RENEW,
    SERVICE,
    SERVICE_TARGET,
    Bundle,
    CrlReply,
    Empty,
    EnrolRequest,
    IssuedReply,
    RenewRequest,
    decode,
    encode,
)
from fedsec.errors import CertificateError, ConfigError, DecodeError, ProtocolError, StorageError
from fedsec.files import atomic_write_bytes
from fedsec.identity.csr import make_csr
from fedsec.identity.enrolment import RenewalRequest
from fedsec.identity.folder import Identity, create_identity, load_identity, load_key, read_secret, replace_certificate
from fedsec.identity.intermediates import AcceptedIntermediates, keep_statement, newer_statement, verify_statement
from fedsec.identity.names import Role
from fedsec.identity.revocation import RevocationList, RevokedError, verify_crl
from fedsec.identity.roster import SignedRoster, VerifiedRoster, verify_roster
from fedsec.identity.tls import to_pem
from fedsec.identity.tokens import MAX_TOKEN_CHARS, Token, check_address, read_token
from fedsec.identity.verify import check_issuers, verify_peer
from fedsec.signing import Signer, verify_signature
from fedsec.translog.head import VerifiedHead, verify_head

TIMEOUT_S = 30.0

M = TypeVar("M")


class EnrolmentUnavailable(ProtocolError):  # noqa: N818 - a state, which may pass
    """The enrolment service cannot be reached or cannot answer now: try again later."""

    code = "enrolment-unavailable"


@dataclass(frozen=True)
class Enrolled:
    """A certificate that was checked against the token and the key.

    Attributes:
        certificate_der: it.
        intermediate_der: its issuer.
        root_der: the root to pin.
        statement: the root's newest, of the intermediates that count; empty: none.
    """

    certificate_der: bytes
    intermediate_der: bytes
    root_der: bytes
    statement: bytes


@dataclass(frozen=True)
class VerifiedBundle:
    """What a gateway may go by.

    Attributes:
        roster: the list of clients; None while there is none.
        crl: the revocation list.
        certificates: of clients on the list, by id: each is the listed client's and valid at the time of the check.
        log_head: of the CA's transparency log.
    """

    roster: VerifiedRoster | None
    crl: RevocationList
    certificates: dict[str, bytes]
    log_head: VerifiedHead


def token_text(given: str | None, file: Path | None, read_stdin: Callable[[], str]) -> str:
    """The token as an operator hands it over: in a file that only its owner may read, on standard input (``-``), or as an argument.

    Args:
        given: the argument, if there is one; ``-`` reads standard input.
        file: the file, if there is one; ``-`` reads standard input.
        read_stdin: reads it.

    Raises:
        ConfigError: none, or both.
        StorageError: the file cannot be read, or others may read it.
        DecodeError: not text.
    """
    if (given is None) == (file is None):
        raise ConfigError("give the token once", field="token", mend="--token-file FILE; - reads standard input; it is a secret until used")
    if "-" in (given, str(file)):
        return read_stdin()[: 2 * MAX_TOKEN_CHARS].strip()
    if given is not None:
        return given.strip()
    assert file is not None
    try:
        return read_secret(file).decode("ascii").strip()
    except UnicodeDecodeError:
        raise DecodeError(f"{file} holds no token") from None


def fetch_certificate(address: str, *, timeout_s: float = TIMEOUT_S) -> bytes:
    """The certificate that whoever answers at ``address`` shows, **unverified**, in DER.

    Raises:
        ConfigError: not ``host:port``.
        EnrolmentUnavailable: nobody answers with TLS 1.3.
    """
    try:
        host, _, port = check_address(address).rpartition(":")
    except ValueError as error:
        raise ConfigError(str(error), field="address") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the hash is compared by the caller; nothing is said on this connection
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s) as plain,
            context.wrap_socket(plain, server_hostname=SERVICE_TARGET) as secure,
        ):
            der = secure.getpeercert(binary_form=True)
    except (OSError, UnicodeError) as error:  # a host name may be one that no resolver takes
        why = getattr(error, "strerror", None) or error
        raise EnrolmentUnavailable(f"no enrolment service answers at {address}: {why}; is it up?") from error
    if der is None:
        raise EnrolmentUnavailable(f"whoever answers at {address} shows no certificate")
    return der


def ca_channel(address: str, fingerprint: bytes, *, timeout_s: float = TIMEOUT_S) -> grpc.Channel:
    """A channel to the service with this certificate and to nobody else; it reconnects by itself.

    Args:
        address: ``host:port``.
        fingerprint: SHA-256 of the service's certificate, 32 bytes.
        timeout_s: seconds for the first connection.

    Raises:
        CertificateError: somebody else answers.
        ConfigError: not an address.
        EnrolmentUnavailable: nobody answers.
    """
    der = fetch_certificate(address, timeout_s=timeout_s)
    if not hmac.compare_digest(hashlib.sha256(der).digest(), fingerprint):
        raise CertificateError(
            f"whoever answers at {address} is not the enrolment service of this federation: its certificate is not the pinned one"
        )
    options = [
        ("grpc.ssl_target_name_override", SERVICE_TARGET),
        ("grpc.max_receive_message_length", MAX_REPLY_BYTES),
        ("grpc.max_send_message_length", MAX_REQUEST_BYTES),
        ("grpc.enable_http_proxy", 0),
    ]
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(to_pem(der)), options=options)


def enrol(
    address: str | None, token: str, signer: Signer, *, timeout_s: float = TIMEOUT_S, clock: Callable[[], datetime] | None = None
) -> Enrolled:
    """Spend a token.

    Args:
        address: ``host:port`` of the service; None takes the token's hint.
        token: as the operator gave it.
        signer: of the key that the certificate will be for.
        timeout_s: seconds for the connection, and again for the call.
        clock: the time at which the answer is checked; the machine's by default.

    Raises:
        DecodeError: not a token.
        ConfigError: no address.
        CertificateError: somebody else answers, the service refuses (it says why), or its answer is not what the token promises.
        EnrolmentUnavailable: nobody answers, or not now.
    """
    claims = read_token(token.strip())
    where = address or claims.address
    if where is None:
        raise ConfigError("the token does not say where the enrolment service is", mend="give its host:port")
    with ca_channel(where, claims.service_sha256, timeout_s=timeout_s) as channel:
        reply = _call(channel, ENROL, EnrolRequest(token.strip(), make_csr(signer)), IssuedReply, timeout_s)
    _check_answer(reply, claims, signer, clock() if clock is not None else datetime.now(tz=UTC))
    return Enrolled(reply.certificate, reply.intermediate, reply.root, reply.root_statement)


def _check_answer(reply: IssuedReply, claims: Token, signer: Signer, now: datetime) -> None:
    if not hmac.compare_digest(hashlib.sha256(reply.root).digest(), claims.root_sha256):
        raise CertificateError("the service answered with another root than the token names")
    statement = reply.root_statement
    accepted = verify_statement(statement, root_der=reply.root, federation=claims.federation) if statement else None
    peer = verify_peer(
        reply.certificate,
        intermediate_der=reply.intermediate,
        root_der=reply.root,
        federation=claims.federation,
        role=claims.role,
        now=now,
        accepted=accepted,
    )
    if peer.public_key != signer.public_key:
        raise CertificateError("the service answered with a certificate for another key")
    if peer.name.uri != claims.uri:
        raise CertificateError(f"the service answered with a certificate for {peer.name.uri}, the token is for {claims.uri}")


def enrol_folder(
    folder: Path,
    token: str,
    *,
    address: str | None = None,
    passphrase: bytes | None = None,
    keep_key: bool = False,
    timeout_s: float = TIMEOUT_S,
) -> Identity:
    """Make a key, spend a token for it, and write the identity; or (``keep_key``) get another certificate for the key that is there.

    The key lies in ``.<name>.pending.pem`` beside the folder until the identity is written: called again after a crash with the same
    token, it comes to the same end.

    Args:
        folder: of the identity to be; its parent must exist.
        token: as the operator gave it.
        address: ``host:port`` of the service; None takes the token's hint.
        passphrase: encrypts the key.
        keep_key: the folder holds an identity of the token's name, whose certificate ended or (an administrator's) soon will.
        timeout_s: as :func:`enrol`.

    Raises:
        StorageError: there is an identity already, or the file system refused.
        FedsecError: as :func:`enrol`.
    """
    if keep_key:
        kept = load_identity(folder, passphrase=passphrase)
        enrolled = enrol(address, token, kept.signer, timeout_s=timeout_s)
        keep_statement(folder, enrolled.statement, root_der=kept.root_der, federation=kept.name.federation)
        return replace_certificate(folder, enrolled.certificate_der, enrolled.intermediate_der, passphrase=passphrase)
    if folder.is_dir() and any(folder.iterdir()):
        raise StorageError(f"{folder} holds an identity already; keep its key with --keep-key, or move it away to enrol anew")
    pending = folder.parent / f".{folder.name}.pending.pem"
    if pending.exists():
        signer = load_key(pending, passphrase=passphrase)
    else:
        signer = Signer.generate()
        atomic_write_bytes(pending, signer.to_pem(passphrase=passphrase), mode=0o600)
    try:
        enrolled = enrol(address, token, signer, timeout_s=timeout_s)
    except RevokedError:
        pending.unlink(missing_ok=True)  # this key never gets a certificate again
        raise
    create_identity(
        folder,
        signer,
        enrolled.certificate_der,
        enrolled.intermediate_der,
        enrolled.root_der,
        passphrase=passphrase,
        statement=enrolled.statement,
    )
    pending.unlink(missing_ok=True)
    return load_identity(folder, passphrase=passphrase)


def renew(channel: grpc.Channel, request: RenewalRequest, *, timeout_s: float = TIMEOUT_S) -> Enrolled:
    """Ask for the renewal of a certificate; whoever keeps the answer checks it (``identity.folder.replace_certificate`` does).

    Args:
        channel: of :func:`ca_channel`.
        request: of ``identity.enrolment.make_renewal``, made by the certificate's holder.
        timeout_s: seconds.

    Raises:
        RevokedError: the certificate was revoked.
        CertificateError: refused; the text says why.
        EnrolmentUnavailable: the service cannot answer now.
        DecodeError: the answer is not one.
    """
    message = RenewRequest(request.certificate_der, request.csr, request.time_ms, request.signature)
    reply = _call(channel, RENEW, message, IssuedReply, timeout_s)
    return Enrolled(reply.certificate, reply.intermediate, reply.root, reply.root_statement)


def fetch_bundle(channel: grpc.Channel, *, timeout_s: float = TIMEOUT_S) -> Bundle:
    """The roster, revocation list and certificates as they are now, unverified; raises as :func:`renew`."""
    return _call(channel, BUNDLE, Empty(), Bundle, timeout_s)


def fetch_crl(channel: grpc.Channel, *, timeout_s: float = TIMEOUT_S) -> bytes:
    """The revocation list alone, unverified: cheap enough to ask every second; raises as :func:`renew`."""
    return _call(channel, CRL, Empty(), CrlReply, timeout_s).crl


def verify_bundle(
    bundle: Bundle,
    *,
    root_der: bytes,
    federation: str,
    now: datetime,
    minimum_version: int = 0,
    minimum_number: int = 0,
    known: AcceptedIntermediates | None = None,
) -> VerifiedBundle:
    """Check a bundle, from the service or from files.

    Args:
        bundle: as received.
        root_der: the pinned root.
        federation: whose it must be.
        now: aware.
        minimum_version: the highest version of the roster seen so far.
        minimum_number: the highest number of the revocation list seen so far.
        known: the root's newest statement seen so far.

    Raises:
        CertificateError: an unsound chain, an old statement of the root or none where one was seen, an old list, a list that has ended, a certificate that is not the listed client's.
        SignatureError: the roster, or the log.
        DecodeError: the roster, or the log's head.
        LogProofError: another log's head.
    """
    chain = {"intermediate_der": bundle.intermediate, "root_der": root_der}
    accepted = newer_statement(bundle.root_statement, root_der=root_der, federation=federation, known=known)
    crl = verify_crl(bundle.crl, **chain, federation=federation, now=now, minimum_number=minimum_number, accepted=accepted)
    verify_signature(check_issuers(**chain).public_key, LOG_KEY_LABEL, bundle.log_key, bundle.log_key_signature)
    head = verify_head(bundle.log_head, bundle.log_key)
    if not bundle.roster:
        if minimum_version:
            raise CertificateError(f"roster: none, where version {minimum_version} was seen")
        return VerifiedBundle(None, crl, {}, head)
    signed = SignedRoster(bundle.roster, bundle.roster_signature)
    roster = verify_roster(signed, **chain, federation=federation, now=now, minimum_version=minimum_version, accepted=accepted)
    members = roster.roster.by_id
    for client_id, der in bundle.certificates.items():
        peer = verify_peer(der, **chain, federation=federation, role=Role.NODE, now=now, accepted=accepted)
        crl.check(peer.serial_number)
        if client_id not in members or (peer.name.name, peer.public_key) != (client_id, members[client_id].public_key):
            raise CertificateError(f"the certificate of {client_id[:140]} is not for a name and key on the list")
    return VerifiedBundle(roster, crl, dict(bundle.certificates), head)


def _call(channel: grpc.Channel, method: str, message: object, kind: type[M], timeout_s: float) -> M:
    try:
        reply = channel.unary_unary(f"/{SERVICE}/{method}")(encode(message), timeout=timeout_s)
    except grpc.RpcError as error:
        _raise(error.code(), "".join(char if char.isprintable() else " " for char in (error.details() or ""))[:400])
    return decode(kind, reply)


def _raise(code: grpc.StatusCode, detail: str) -> None:
    if code is grpc.StatusCode.UNAUTHENTICATED:
        raise RevokedError(f"the CA refuses: {detail}")
    if code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INVALID_ARGUMENT):
        raise CertificateError(f"the CA refuses: {detail}")
    raise EnrolmentUnavailable(f"the enrolment service does not answer: {detail} ({code.name.lower()}); try again later")
