"""Mutual TLS for gRPC with a federation's certificates: credentials of both sides, and what a handler checks of a connection.

1. Trust is the pinned root alone. A client must show a certificate; the server's identity is read anew for each handshake, so that a
   renewed certificate is used at once, while channels that are open go on.
2. gRPC in Python can neither demand TLS 1.3 nor look at a revocation list, a URI or a missing extended key usage: a handshake proves
   that the peer holds a key under our root, and **no more**. Each handler calls :func:`check_tls13`, and
   ``verify.verify_peer`` on :func:`peer_certificate`.
3. A client cannot look at the server's URI either. It checks the certificate's purpose and its subject, in which this federation's CA puts
   the server's name (:func:`server_target`) and nobody else's: so TLS itself tells which server it is, at every handshake, also when a
   channel reconnects by itself. That it is not revoked must be shown above TLS (the edge's ``Hello``).

Source: design note IDENTITY, "gRPC facts"; gRPC 1.85, seen by running it.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import grpc

from fedsec.errors import CertificateError, FedsecError
from fedsec.identity.folder import Identity
from fedsec.identity.names import Role, check_server_name, subject_of

TLS_VERSION = b"TLSv1.3"


def server_target(name: str) -> str:
    """Subject of the certificate of the server with this name: what a client's channel to it checks.

    Raises:
        CertificateError: no server can have this name.
    """
    return subject_of(Role.SERVER, check_server_name(name))


def channel_options(server_name: str) -> list[tuple[str, str]]:
    """Options that a channel to this server needs with :func:`channel_credentials`; raises as :func:`server_target`."""
    return [("grpc.ssl_target_name_override", server_target(server_name))]


class Context(Protocol):
    """What is used of a handler's context, gRPC's plain or asyncio one."""

    def auth_context(self) -> Mapping[str, Iterable[Any]]:
        """What the transport knows of the caller."""


def to_pem(*certificates_der: bytes) -> bytes:
    """Certificates in PEM, one after the other."""
    return b"".join(ssl.DER_cert_to_PEM_cert(der).encode("ascii") for der in certificates_der)


def server_credentials(load: Callable[[], Identity]) -> grpc.ServerCredentials:
    """Credentials of a server that follow its identity.

    Args:
        load: gives the identity as it is now; called for every handshake, so it should remember what it read. An error of ours leaves
            the last identity in use: a folder that is being mended must not close the port. It is called from gRPC's threads.

    Raises:
        FedsecError: what ``load`` raises in the first call.
    """
    used = load()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal used
        try:
            found = load()
        except FedsecError:
            return None
        if found.certificate_der == used.certificate_der and found.intermediate_der == used.intermediate_der:
            return None
        used = found
        return _configuration(found)

    return grpc.dynamic_ssl_server_credentials(_configuration(used), fetch, require_client_authentication=True)


def _configuration(identity: Identity) -> grpc.ServerCertificateConfiguration:
    chain = to_pem(identity.certificate_der, identity.intermediate_der)
    return grpc.ssl_server_certificate_configuration([(identity.signer.to_pem(), chain)], to_pem(identity.root_der))


def channel_credentials(identity: Identity) -> grpc.ChannelCredentials:
    """Credentials of a client; use them with :func:`channel_options`."""
    chain = to_pem(identity.certificate_der, identity.intermediate_der)
    return grpc.ssl_channel_credentials(to_pem(identity.root_der), identity.signer.to_pem(), chain)


def secure_channel(address: str, identity: Identity, server_name: str, *, options: Sequence[tuple[str, str | int]] = ()) -> grpc.Channel:
    """A channel to a server of the federation; nothing is connected yet.

    Args:
        address: ``host:port``.
        identity: the client's.
        server_name: which; another server's certificate fails the handshake.
        options: more of gRPC's channel options.
    """
    return grpc.secure_channel(address, channel_credentials(identity), options=[*channel_options(server_name), *options])


def peer_certificate(context: Context) -> bytes:
    """The certificate that the caller showed, in DER: proven to hold its key, to be below the root, and nothing else.

    Raises:
        CertificateError: none, or several.
    """
    return _der(_property(context, "x509_pem_cert"))


def check_tls13(context: Context) -> None:
    """Refuse a connection of another version than TLS 1.3.

    Raises:
        CertificateError: another version, or no TLS.
    """
    version = _property(context, "ssl_tls_version")
    if version != TLS_VERSION:
        raise CertificateError(f"the connection is {version.decode('ascii', 'replace')[:20]}, not TLS 1.3; the caller's TLS is too old")


def _property(context: Context, name: str) -> bytes:
    values = list(context.auth_context().get(name, ()))
    if len(values) != 1 or not isinstance(values[0], bytes):
        raise CertificateError(
            "the caller showed no certificate" if name == "x509_pem_cert" else "the connection does not say how it is secured"
        )
    return values[0]


def _der(pem: bytes) -> bytes:
    try:
        return ssl.PEM_cert_to_DER_cert(pem.decode("ascii"))
    except ValueError:
        raise CertificateError("the caller's certificate cannot be read") from None
