"""Names of peers: SPIFFE ids, one URI a certificate, from which the role is read.

1. A node is ``spiffe://<federation>/site/<site>/node/<id>``, a server ``spiffe://<federation>/server/<name>``, an administrator
   ``spiffe://<federation>/admin/<name>``; nothing else is a name.
2. Every part is 1 to 128 characters of ``a-z0-9._-``, the first a letter or digit: no case, escapes, empty or dotted segments to
   disagree about, and each part is safe as a file name.
3. A server's name has at most 50 of them, the last a letter or digit: it stands in the certificate's subject too, which has 64, and which
   gRPC compares without a dot at the end.
4. Whatever is spelled otherwise is refused, never mended.

Source: SPIFFE-ID specification 1.0, section 2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from fedsec.errors import CertificateError

_PART = r"[a-z0-9][a-z0-9._-]{0,127}"
_SERVER_NAME = r"[a-z0-9](?:[a-z0-9._-]{0,48}[a-z0-9])?"
_NODE = re.compile(rf"spiffe://({_PART})/site/({_PART})/node/({_PART})", re.ASCII)
_SERVER = re.compile(rf"spiffe://({_PART})/server/({_SERVER_NAME})", re.ASCII)
_ADMIN = re.compile(rf"spiffe://({_PART})/admin/({_PART})", re.ASCII)


class Role(StrEnum):
    """What a peer may be."""

    NODE = "node"
    """A client of the federation."""
    SERVER = "server"
    """The aggregator."""
    ADMIN = "admin"
    """Who approves releases."""


@dataclass(frozen=True)
class PeerName:
    """A parsed name.

    Attributes:
        federation: the trust domain.
        role: node, server or admin.
        site: the organisation of a node; None for the others.
        name: client id of a node, name of a server or administrator.
    """

    federation: str
    role: Role
    site: str | None
    name: str

    @property
    def uri(self) -> str:
        """The SPIFFE id."""
        return uri_of(self.federation, self.role, self.site, self.name)

    @property
    def subject(self) -> str:
        """The common name of the certificate's subject."""
        return subject_of(self.role, self.name)


def check_name(what: str, part: str) -> str:
    """The part itself, if it may stand in a name.

    Raises:
        CertificateError: it may not.
    """
    if not re.fullmatch(_PART, part, re.ASCII):
        raise CertificateError(f"{what} {part[:140]!r} is not 1 to 128 of a-z 0-9 . _ - with a letter or digit first")
    return part


def check_server_name(name: str) -> str:
    """The name itself, if a server may have it.

    Raises:
        CertificateError: it may not.
    """
    if not re.fullmatch(_SERVER_NAME, name, re.ASCII):
        raise CertificateError(f"server name {name[:140]!r} is not 1 to 50 of a-z 0-9 . _ - with a letter or digit first and last")
    return name


def subject_of(role: Role, name: str) -> str:
    """What the subject of a peer's certificate says: the role; of a server also which, for gRPC's clients check that and nothing else.

    >>> subject_of(Role.SERVER, "main")
    'fedsec server main'
    """
    return f"fedsec server {name}" if role is Role.SERVER else f"fedsec {role.value}"


def node_uri(federation: str, site: str, client_id: str) -> str:
    """The SPIFFE id of a client.

    Raises:
        CertificateError: a part that may not stand in a name.

    >>> node_uri("hearts.example", "basel", "client-7")
    'spiffe://hearts.example/site/basel/node/client-7'
    """
    parts = (check_name("federation", federation), check_name("site", site), check_name("client id", client_id))
    return "spiffe://{}/site/{}/node/{}".format(*parts)


def server_uri(federation: str, name: str) -> str:
    """The SPIFFE id of a server; raises as :func:`node_uri`.

    >>> server_uri("hearts.example", "main")
    'spiffe://hearts.example/server/main'
    """
    return f"spiffe://{check_name('federation', federation)}/server/{check_server_name(name)}"


def admin_uri(federation: str, name: str) -> str:
    """The SPIFFE id of an administrator; raises as :func:`node_uri`.

    >>> admin_uri("hearts.example", "ada")
    'spiffe://hearts.example/admin/ada'
    """
    return f"spiffe://{check_name('federation', federation)}/admin/{check_name('admin name', name)}"


def uri_of(federation: str, role: Role, site: str | None, name: str) -> str:
    """The SPIFFE id of a peer of any role.

    Raises:
        CertificateError: a part that may not stand in a name, a node without a site, or another role with one.
    """
    if (site is not None) != (role is Role.NODE):
        raise CertificateError(f"a {role.value} has {'no' if site is not None else 'a'} site")
    if site is not None:
        return node_uri(federation, site, name)
    return server_uri(federation, name) if role is Role.SERVER else admin_uri(federation, name)


def parse_uri(uri: str) -> PeerName:
    """Read a SPIFFE id.

    Raises:
        CertificateError: not one of the three forms.

    >>> parse_uri("spiffe://hearts.example/server/main").role
    <Role.SERVER: 'server'>
    """
    if match := _NODE.fullmatch(uri):
        return PeerName(match[1], Role.NODE, match[2], match[3])
    if match := _SERVER.fullmatch(uri):
        return PeerName(match[1], Role.SERVER, None, match[2])
    if match := _ADMIN.fullmatch(uri):
        return PeerName(match[1], Role.ADMIN, None, match[2])
    raise CertificateError(f"not the name of a node, server or admin: {uri[:200]!r}")
