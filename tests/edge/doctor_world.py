"""A small federation for the doctor's tests: a CA, homes on disk, and a gRPC server with the gateway's credentials that answers Hello."""

import contextlib
import secrets
import time
from concurrent import futures
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from fedsec.edge import edge_pb2
from fedsec.edge.doctor import Question, examine
from fedsec.edge.service import SERVICE
from fedsec.edge.signing import SESSION_ID_BYTES, Hello, new_share, sign_hello
from fedsec.identity.ca import CertificateAuthority
from fedsec.identity.names import Role
from fedsec.identity.revocation import Revocation, make_crl
from fedsec.identity.tls import peer_certificate, server_credentials
from fedsec.signing import Signer

FEDERATION = "hearts.example"
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Party:
    """A key and certificates, sound or not: ``make_identity`` would refuse half of those in these tests."""

    signer: Signer
    certificate_der: bytes
    intermediate_der: bytes
    root_der: bytes

    def save(self, folder: Path):
        folder.mkdir(mode=0o700, parents=True)
        (folder / "key.pem").touch(mode=0o600)
        (folder / "key.pem").write_bytes(self.signer.to_pem())
        for name, der in (("certificate", self.certificate_der), ("intermediate", self.intermediate_der), ("root", self.root_der)):
            (folder / f"{name}.der").write_bytes(der)


class World:
    def __init__(self):
        self.now = datetime.now(UTC)
        self.ca = CertificateAuthority.create(FEDERATION, now=self.now - 30 * DAY)
        self.other = CertificateAuthority.create(FEDERATION, now=self.now - 30 * DAY)

    def party(self, role=Role.NODE, name="client-7", *, ca=None, when=None):
        ca, signer = ca or self.ca, Signer.generate()
        issued = ca.issue(role, "basel" if role is Role.NODE else None, name, signer.public_key, now=when or self.now)
        return Party(signer, issued.certificate_der, ca.intermediate_der, ca.root_der)

    def with_usage(self, party, usage):
        """The same certificate, signed by the CA again with another extended key usage (None: without one)."""
        old = x509.load_der_x509_certificate(party.certificate_der)
        builder = x509.CertificateBuilder().issuer_name(old.issuer).subject_name(old.subject).public_key(old.public_key())
        builder = (
            builder.serial_number(old.serial_number).not_valid_before(old.not_valid_before_utc).not_valid_after(old.not_valid_after_utc)
        )
        for extension in old.extensions:
            if not isinstance(extension.value, x509.ExtendedKeyUsage):
                builder = builder.add_extension(extension.value, critical=extension.critical)
        if usage is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        der = self.ca.signer.sign_certificate(builder).public_bytes(serialization.Encoding.DER)
        return replace(party, certificate_der=der)

    def crl(self, *parties, when=None):
        revoked = [Revocation(x509.load_der_x509_certificate(item.certificate_der).serial_number, self.now) for item in parties]
        return make_crl(self.ca, revoked, number=3, now=when or self.now)


SERVER_USAGE, CLIENT_USAGE = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


def client_home(folder: Path, address: str, party: Party | None, *, server_name="main"):
    folder.mkdir(mode=0o700)
    (folder / "agent.toml").write_text(f'server = "{address}"\nserver_name = "{server_name}"\n')
    if party is not None:
        party.save(folder / "identity")
    return folder


def server_home(folder, listen, party, crl):
    folder.mkdir(mode=0o700)
    (folder / "server.toml").write_text(f'[server]\nfederation = "{FEDERATION}"\n[gateway]\nlisten = "{listen}"\n')
    party.save(folder / "identity")
    (folder / "federation").mkdir(mode=0o700)
    (folder / "federation" / "crl.der").write_bytes(crl)
    return folder


@contextlib.contextmanager
def gateway(server: Party, *, crl=b"", shift=timedelta(0), signer=None, refuse=None):
    """A gRPC server as the gateway is one: mutual TLS under the pinned root, Hello and Bundle.

    Args:
        shift: how far its clock is ahead.
        signer: signs Hello instead of the server's own key.
        refuse: status and detail for every Hello.
    """

    def hello(request, context):
        if refuse is not None:
            context.abort(*refuse)
        session, moment = secrets.token_bytes(SESSION_ID_BYTES), int((time.time() + shift.total_seconds()) * 1000)
        share, certificate = new_share().public_key().public_bytes_raw(), peer_certificate(context)
        whole = Hello(request.client_nonce, request.client_share, session, moment, share, certificate)
        signature = sign_hello(signer or server.signer, whole)
        return edge_pb2.HelloReply(
            session_id=session, server_time_ms=moment, server_certificate=server.certificate_der, intermediate=server.intermediate_der,
            signature=signature, server_share=share,
        )  # fmt: skip

    def bundle(_request, _context):
        return edge_pb2.BundleReply(crl=crl, intermediate=server.intermediate_der)

    serialize = lambda message: message.SerializeToString()  # noqa: E731
    methods = {
        "Hello": grpc.unary_unary_rpc_method_handler(hello, edge_pb2.HelloRequest.FromString, serialize),
        "Bundle": grpc.unary_unary_rpc_method_handler(bundle, edge_pb2.BundleRequest.FromString, serialize),
    }
    running = grpc.server(futures.ThreadPoolExecutor(2))
    running.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    port = running.add_secure_port("127.0.0.1:0", server_credentials(lambda: server))
    running.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        running.stop(0).wait()


def ask(home: Path, **changes):
    """The report's findings by code."""
    sound = {
        "clock": lambda: datetime.now(UTC),
        "idle_s": 0.05,
        "timeout_s": 3.0,
        "environment": {},
        "proc_options": "rw,hidepid=2",
        "check_source": False,
    }
    report = examine(Question(home=home, **{**sound, **changes}))
    return {item.code: item for item in report.findings}, report


def faults(found):
    return {code for code, item in found.items() if item.level != "ok"}
