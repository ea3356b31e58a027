"""Mutual TLS for gRPC with a federation's certificates: credentials of both sides, and what a handler checks of a connection.

1. Trust is the pinned root alone. A client must show a certificate; the server's identity is read anew for each handshake, so that a
   renewed certificate is used at once, while channels that are open go on.
2. gRPC in Python can neither demand TLS 1.3 nor look at a revocation list, a URI or a missing extended key usage: a handshake proves
   that the peer holds a key under our root, and **no more**. Each handler calls :func:`check_tls13`, and
   ``verify.verify_peer`` on :func:`peer_certificate`.
3. A client cannot look at the server's URI either. It checks the certificate's purpose and its subject, which is :data:`SERVER_TARGET`
   for every server and for nobody else; which server it is must be shown above TLS (the edge's ``Hello``).

Source: design note IDENTITY, "gRPC facts"; gRPC 1.85, seen by running it.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import grpc

from fedsec.errors import CertificateError, FedsecError
from fedsec.identity.folder import Identity

SERVER_TARGET = "fedsec server"
"""Subject of every server's certificate: the name that a client's channel checks."""

TLS_VERSION = b"TLSv1.3"

CHANNEL_OPTIONS: tuple[tuple[str, str], ...] = (("grpc.ssl_target_name_override", SERVER_TARGET),)
"""Options that a channel to a server needs with :func:`channel_credentials`."""


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
    """Credentials of a client; use them with :data:`CHANNEL_OPTIONS`."""
    chain = to_pem(identity.certificate_der, identity.intermediate_der)
    return grpc.ssl_channel_credentials(to_pem(identity.root_der), identity.signer.to_pem(), chain)


def secure_channel(address: str, identity: Identity, *, options: Sequence[tuple[str, str | int]] = ()) -> grpc.Channel:
    """A channel to a server of the federation; nothing is connected yet.

    Args:
        address: ``host:port``.
        identity: the client's.
        options: more of gRPC's channel options.
    """
    return grpc.secure_channel(address, channel_credentials(identity), options=[*CHANNEL_OPTIONS, *options])


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
