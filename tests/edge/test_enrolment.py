"""The enrolment service over real TLS: whom it answers, what its callers believe, and what a crash leaves."""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from concurrent import futures
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from fedsec.codec import canonical_json
from fedsec.edge import enrolment_client, enrolment_service
from fedsec.edge.ca_host import CaHost
from fedsec.edge.ca_settings import CaSettings, load_ca_settings, save_ca_settings
from fedsec.edge.enrolment_client import (
    Bundle,
    EnrolmentUnavailable,
    ca_channel,
    enrol,
    enrol_folder,
    fetch_bundle,
    fetch_certificate,
    fetch_crl,
    renew,
    verify_bundle,
)
from fedsec.edge.enrolment_frames import SERVICE, CrlReply, Empty, EnrolRequest, IssuedReply, RenewRequest, decode, encode
from fedsec.edge.enrolment_limits import MAX_ADDRESSES, RateLimit, WaitingRoom, address_of
from fedsec.edge.enrolment_service import make_server
from fedsec.errors import CertificateError, ConfigError, DecodeError, FedsecError, SignatureError, StorageError
from fedsec.identity.csr import make_csr
from fedsec.identity.enrolment import make_renewal
from fedsec.identity.folder import load_identity, replace_certificate
from fedsec.identity.names import Role
from fedsec.identity.register import Register
from fedsec.identity.register_rows import Binding
from fedsec.identity.revocation import Reason, RevokedError
from fedsec.identity.roster import Roster
from fedsec.identity.tls import to_pem
from fedsec.identity.tokens import make_token
from fedsec.signing import Signer
from fedsec.translog.entries import EntryKind
from fedsec.translog.log import TransparencyLog

FEDERATION = "hearts.example"


def now():
    return datetime.now(tz=UTC)


@contextlib.contextmanager
def coming_from(source, address):
    """A way to ``address`` whose connections come from another loopback address."""
    host, _, port = address.rpartition(":")
    loop = asyncio.new_event_loop()

    async def copy(reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def forward(reader, writer):
        there = await asyncio.open_connection(host, int(port), local_addr=(source, 0))
        await asyncio.gather(copy(reader, there[1]), copy(there[0], writer))

    server = loop.run_until_complete(asyncio.start_server(forward, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(lambda: [server.close(), *(task.cancel() for task in asyncio.all_tasks(loop))])
        loop.call_soon_threadsafe(loop.call_later, 0.1, loop.stop)
        thread.join(5)


def ms():
    return int(now().timestamp() * 1000)


class Running:
    """A CA in a folder with its service on loopback."""

    def __init__(self, folder, **settings):
        self.host = CaHost.create(folder / "ca", FEDERATION, CaSettings(**settings), now=now())
        self.folder = folder
        self.server, port = make_server(self.host, "127.0.0.1:0")
        self.server.start()
        self.address = f"127.0.0.1:{port}"

    def token(self, name="client-1", role=Role.NODE, site="basel"):
        return self.host.token(role, site if role is Role.NODE else None, name, now=now())[0]

    def enrol(self, name="client-1", role=Role.NODE, signer=None):
        return enrol(self.address, self.token(name, role), signer or Signer.generate(), timeout_s=10)

    def channel(self):
        return ca_channel(self.address, self.host.service.fingerprint)

    def raw(self, method, data):
        with self.channel() as channel:
            return channel.unary_unary(f"/{SERVICE}/{method}")(data, timeout=10)


@contextlib.contextmanager
def running(folder, **settings):
    found = Running(folder, **settings)
    try:
        yield found
    finally:
        found.server.stop(0).wait()


@pytest.fixture(scope="module")
def ca(tmp_path_factory):
    with running(tmp_path_factory.mktemp("ca")) as found:
        yield found


@pytest.fixture(autouse=True)
def _no_limits(monkeypatch, request):
    """One service serves all tests of this file from one address; the tests of the limits have services of their own."""
    if request.cls is None:
        monkeypatch.setattr(RateLimit, "allows", lambda *_, **__: True)


def test_a_device_enrols_and_has_its_identity(ca, tmp_path):
    identity = enrol_folder(tmp_path / "identity", ca.token("device") + "\n", address=ca.address)
    assert (identity.name.uri, identity.root_der) == ("spiffe://hearts.example/site/basel/node/device", ca.host.authority.root_der)
    assert load_identity(tmp_path / "identity").certificate_der == identity.certificate_der
    assert sorted(path.name for path in tmp_path.iterdir()) == ["identity"]
    with pytest.raises(StorageError, match="identity already"):
        enrol_folder(tmp_path / "identity", ca.token("device"), address=ca.address)


def test_the_address_may_stand_in_the_token(tmp_path):
    with running(tmp_path) as here:
        here.host.settings = CaSettings(address=here.address)
        assert enrol(None, here.token(), Signer.generate(), timeout_s=10)
        here.host.settings = CaSettings()
        with pytest.raises(ConfigError, match="does not say where"):
            enrol(None, here.token(), Signer.generate(), timeout_s=10)


@pytest.mark.parametrize("role", list(Role))
def test_every_role_enrols(ca, role):
    assert ca.enrol(f"x-{role.value}", role)


def test_a_reused_token_is_refused(ca):
    token = ca.token("reused")
    enrol(ca.address, token, Signer.generate(), timeout_s=10)
    with pytest.raises(CertificateError, match="used before"):
        enrol(ca.address, token, Signer.generate(), timeout_s=10)


def test_who_guesses_learns_nothing(ca):
    """Nonsense, a sound form with another CA's signature, a cut signature: one answer for all."""
    token, csr = ca.token("guess"), make_csr(Signer.generate())
    claims = enrolment_client.read_token(token)
    head, payload, signature = token.split(".")
    answers = set()
    for text in (
        "nonsense",
        make_token(Signer.generate(), claims),
        f"{head}.{payload}.{signature[:40]}",
        f"{head}.{payload}.{'A' * len(signature)}",
        "",
    ):
        with pytest.raises(grpc.RpcError) as caught:
            ca.raw("Enrol", encode(EnrolRequest(text, csr)))
        answers.add((caught.value.code(), caught.value.details()))
    assert answers == {(grpc.StatusCode.PERMISSION_DENIED, "the token is not accepted; ask for a new one")}


def test_an_expired_token_and_another_federations_are_refused(ca, tmp_path):
    old = ca.host.token(Role.NODE, "basel", "late", now=now() - timedelta(minutes=16))[0]
    with pytest.raises(CertificateError, match="ended"):
        enrol(ca.address, old, Signer.generate(), timeout_s=10)
    with running(tmp_path) as other, pytest.raises(CertificateError, match="not the enrolment service"):
        enrol(ca.address, other.token(), Signer.generate(), timeout_s=10)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b'{"token":1,"csr":""}', b'{"csr":"*","token":"x"}', b'{"csr":"","more":1,"token":"x"}', b'{"csr": "","token":"x"}'])  # fmt: skip
def test_hostile_frames_are_refused_in_few_words(ca, data):
    for method in ("Enrol", "Renew", "Bundle", "Crl"):
        if method in ("Bundle", "Crl") and data == b"{}":
            continue
        with pytest.raises(grpc.RpcError) as caught:
            ca.raw(method, data)
        assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, "not a request of this service")


def test_a_request_that_is_too_long_is_refused(ca):
    with pytest.raises(grpc.RpcError) as caught:
        ca.raw("Enrol", canonical_json({"token": "x" * 20_000, "csr": ""}))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_fault_of_ours_says_nothing_to_the_caller(ca, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError("a secret detail")

    monkeypatch.setattr(ca.host, "bundle", fail)
    with pytest.raises(grpc.RpcError) as caught:
        ca.raw("Bundle", b"{}")
    assert "secret" not in caught.value.details()
    monkeypatch.setattr(ca.host, "bundle", lambda **_: (_ for _ in ()).throw(StorageError("the disk at /srv is full")))
    with ca.channel() as channel, pytest.raises(EnrolmentUnavailable) as refused:
        fetch_bundle(channel)
    assert "/srv" not in str(refused.value)


def test_no_token_is_ever_logged(ca, caplog):
    caplog.set_level(logging.DEBUG)
    tokens = [ca.token("logged"), "fedsec-token-1.secret-of-a-guess.x"]
    enrol(ca.address, tokens[0], Signer.generate(), timeout_s=10)
    for token in tokens:
        with pytest.raises(grpc.RpcError):
            ca.raw("Enrol", encode(EnrolRequest(token, b"")))
    text = caplog.text
    assert "logged" in text
    for token in tokens:
        assert token not in text
        assert token.split(".")[1] not in text


def test_only_tls_1_3_is_spoken_to(ca, tmp_path):
    """A client that forces TLS 1.2 gets through gRPC's handshake; the handler refuses."""
    host, port = ca.address.split(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    listener = socket.create_server(("127.0.0.1", 0))

    def work():
        with contextlib.suppress(OSError):
            plain, _ = listener.accept()
            with plain, socket.create_connection((host, int(port))) as carrier, context.wrap_socket(carrier) as secure:
                threading.Thread(target=pump, args=(secure, plain), daemon=True).start()
                pump(plain, secure)

    def pump(source, target):
        with contextlib.suppress(OSError, ValueError):
            while data := source.recv(65536):
                target.sendall(data)

    threading.Thread(target=work, daemon=True).start()
    with listener, grpc.insecure_channel(f"127.0.0.1:{listener.getsockname()[1]}") as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/{SERVICE}/Bundle")(b"{}", timeout=10)
    assert "not TLS 1.3" in caught.value.details()


@contextlib.contextmanager
def imposter(key_pem, chain_pem, answer):
    """A service with any certificate that answers every call with ``answer``."""
    server = grpc.server(futures.ThreadPoolExecutor(2))
    seen = []

    def handle(request, context):
        seen.append(request)
        return answer

    handlers = {name: grpc.unary_unary_rpc_method_handler(handle) for name in ("Enrol", "Bundle")}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key_pem, chain_pem)]))
    server.start()
    try:
        yield f"127.0.0.1:{port}", seen
    finally:
        server.stop(0).wait()


def test_the_aggregator_does_not_pass_for_the_enrolment_service(ca):
    """It has a sound server certificate of the federation, and would collect tokens: no token ever leaves the device."""
    signer = Signer.generate()
    enrolled = ca.enrol("main", Role.SERVER, signer)
    with imposter(signer.to_pem(), to_pem(enrolled.certificate_der, enrolled.intermediate_der), b"") as (address, seen):
        with pytest.raises(CertificateError, match="not the pinned one"):
            enrol(address, ca.token("victim"), Signer.generate(), timeout_s=10)
        with pytest.raises(CertificateError, match="not the pinned one"):
            ca_channel(address, ca.host.service.fingerprint)
    assert seen == []


def test_a_service_that_changes_after_the_look_is_refused_by_the_channel(ca, monkeypatch):
    """The look and the channel are two connections: the second one is held to the same certificate."""
    signer = Signer.generate()
    enrolled = ca.enrol("second", Role.SERVER, signer)
    with imposter(signer.to_pem(), to_pem(enrolled.certificate_der, enrolled.intermediate_der), b"") as (address, seen):
        monkeypatch.setattr(enrolment_client, "fetch_certificate", lambda *_, **__: ca.host.service.certificate_der)
        with ca_channel(address, ca.host.service.fingerprint) as channel, pytest.raises(EnrolmentUnavailable):
            fetch_bundle(channel, timeout_s=10)
    assert seen == []


def test_an_answer_is_held_against_the_token_and_the_key(ca, tmp_path):
    """Whoever holds the service's key alone (not the CA's) can answer, but with nothing that is believed."""
    signer = Signer.generate()
    ours, other_key = ca.enrol("mine", Role.NODE, signer), ca.enrol("theirs")
    server = ca.enrol("mine", Role.SERVER)
    with running(tmp_path) as foreign:
        alien = foreign.enrol("mine", Role.NODE, signer)
    key, chain = ca.host.service_key_pem(None), to_pem(ca.host.service.certificate_der)
    authority = ca.host.authority
    renamed = authority.issue_node("mine-2", signer.public_key, site="basel", now=now()).certificate_der
    moved = authority.issue_node("mine", signer.public_key, site="zurich", now=now()).certificate_der
    cases = {
        "another root": (alien.certificate_der, alien.intermediate_der, alien.root_der),
        "not issued by": (alien.certificate_der, ours.intermediate_der, ours.root_der),
        "another key": (other_key.certificate_der, ours.intermediate_der, ours.root_der),
        "certificate for": (renamed, ours.intermediate_der, ours.root_der),
        r"site/zurich": (moved, ours.intermediate_der, ours.root_der),
        "longer than|extended key usage": (server.certificate_der, ours.intermediate_der, ours.root_der),
        "that can be read": (b"", ours.intermediate_der, ours.root_der),
    }
    for because, parts in cases.items():
        with imposter(key, chain, encode(IssuedReply(*parts, b""))) as (address, _), pytest.raises(CertificateError, match=because):
            enrol(address, ca.token("mine"), signer, timeout_s=10)
    with imposter(key, chain, b"nonsense") as (address, _), pytest.raises(DecodeError):
        enrol(address, ca.token("mine"), signer, timeout_s=10)


def test_nobody_there_is_said_in_words(ca):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(EnrolmentUnavailable, match="no enrolment service answers"):
            fetch_certificate(address, timeout_s=0.3)
    with pytest.raises(EnrolmentUnavailable):
        fetch_certificate("x" * 64 + ".example:1", timeout_s=0.3)
    for bad in ("nowhere", "a:0", "http://x:1"):
        with pytest.raises(ConfigError):
            fetch_certificate(bad)


def test_a_renewal_over_the_wire_replaces_the_certificate(ca, tmp_path):
    identity = enrol_folder(tmp_path / "identity", ca.token("renewing"), address=ca.address)
    with ca.channel() as channel:
        answer = renew(channel, make_renewal(identity.signer, identity.certificate_der, time_ms=ms()))
        renewed = replace_certificate(tmp_path / "identity", answer.certificate_der, answer.intermediate_der)
        assert renewed.serial_number != identity.serial_number
        ca.host.revoke("renewing", Reason.KEY_COMPROMISE, now=now())
        with pytest.raises(RevokedError):
            renew(channel, make_renewal(identity.signer, renewed.certificate_der, time_ms=ms()))
        with pytest.raises(CertificateError, match="clock"):
            renew(channel, make_renewal(identity.signer, renewed.certificate_der, time_ms=ms() - 3_600_000))


def verified(here, bundle, **minimum):
    return verify_bundle(bundle, root_der=here.host.authority.root_der, federation=FEDERATION, now=now(), **minimum)


def test_a_gateway_gets_lists_that_follow_every_change(tmp_path):
    with running(tmp_path) as here, here.channel() as channel:
        assert verified(here, fetch_bundle(channel)).roster is None
        signers = {name: Signer.generate() for name in ("client-1", "client-2")}
        for name, signer in signers.items():
            here.enrol(name, Role.NODE, signer)
        here.enrol("main", Role.SERVER)
        first = verified(here, fetch_bundle(channel))
        assert list(first.roster.roster.by_id) == list(first.certificates) == ["client-1", "client-2"]
        here.host.revoke("client-2", Reason.CESSATION, now=now())
        second = verified(here, fetch_bundle(channel), minimum_version=2, minimum_number=first.crl.number)
        assert list(second.certificates) == ["client-1"]
        assert second.crl.number == first.crl.number + 1
        assert len(second.crl.serial_numbers) == 1
        assert fetch_crl(channel) == fetch_bundle(channel).crl == (tmp_path / "ca" / "crl.der").read_bytes()
        assert second.log_head.head.size == 6
    with TransparencyLog.open(tmp_path / "ca" / "log", here.host._log_signer, durable=False) as log:
        kinds = [entry.kind for entry in log.entries()]
    assert kinds == [EntryKind.CERTIFICATE] * 3 + [EntryKind.ROSTER, EntryKind.REVOCATION, EntryKind.ROSTER]


def test_a_bundle_is_not_believed_but_checked(tmp_path):
    """An old list, another CA's, a stranger's certificate under a member's name, a revoked one, a log key that the CA did not sign."""
    with running(tmp_path) as here:
        here.enrol("client-1")
        here.enrol("main", Role.SERVER)
        old = here.host.bundle(now=now())
        here.enrol("client-2")
        sound = here.host.bundle(now=now())
        stranger = here.host.authority.issue_node("client-1", Signer.generate().public_key, site="basel", now=now()).certificate_der
        other_key = Signer.generate()
        verified(here, sound)
        parts = {name: getattr(sound, name) for name in Bundle.__dataclass_fields__}
        for changes, kind in (
            ({"roster": old.roster, "roster_signature": old.roster_signature}, CertificateError),
            ({"roster": old.roster}, SignatureError),
            ({"roster": b""}, CertificateError),
            ({"crl": b""}, CertificateError),
            ({"certificates": {**sound.certificates, "client-1": stranger}}, CertificateError),
            ({"certificates": {"client-3": sound.certificates["client-1"]}}, CertificateError),
            ({"certificates": {"../x": sound.certificates["client-1"]}}, CertificateError),
            ({"log_key": other_key.public_key}, SignatureError),
            ({"log_head": sound.log_head[:-1] + bytes([sound.log_head[-1] ^ 1])}, FedsecError),
        ):
            with pytest.raises(kind):
                verified(here, Bundle(**{**parts, **changes}), minimum_version=2)
        revoked = here.host.bundle(now=now())
        here.host.revoke("client-2", Reason.UNSPECIFIED, now=now())
        mixed = Bundle(**{**{name: getattr(revoked, name) for name in parts}, "crl": here.host.crl(now=now())})
        with pytest.raises(RevokedError):
            verified(here, mixed)


def test_the_logs_head_is_signed_anew_when_the_log_grows_or_the_head_is_old(tmp_path):
    with running(tmp_path) as here:
        start = now()
        heads = [here.host.bundle(now=start + timedelta(seconds=seconds)).log_head for seconds in (0, 59, 61)]
        assert heads[0] == heads[1] != heads[2]
        here.enrol("client-1")
        assert verified(here, here.host.bundle(now=now())).log_head.head.size == 1


def test_automatic_lists_may_be_switched_off(tmp_path):
    with running(tmp_path, auto_roster=False) as here:
        here.enrol("client-1")
        here.enrol("main", Role.SERVER)
        assert here.host.bundle(now=now()).roster == b""
        here.host.roster(now=now())
        assert here.host.bundle(now=now()).roster
        assert (tmp_path / "ca" / "roster.json").exists()


@pytest.mark.parametrize("message", [EnrolRequest("t", b"c"), RenewRequest(b"a", b"b", 7, b"c"), Empty(), IssuedReply(b"a", b"b", b"c", b"d"), CrlReply(b"x"), Bundle(b"a", b"b", b"c", b"d", {"x": b"y"}, b"e", b"f", b"g", b"h")])  # fmt: skip
def test_frames_read_back_and_show_nothing(message):
    assert decode(type(message), encode(message)) == message
    assert "b'" not in repr(message)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_frame_or_a_decode_error(data):
    for kind in (EnrolRequest, RenewRequest, IssuedReply, Bundle, CrlReply):
        with pytest.raises(DecodeError):
            decode(kind, data)


def test_a_cas_folder_that_others_may_enter_is_closed(tmp_path, caplog):
    CaHost.create(tmp_path / "ca", FEDERATION, CaSettings(), now=now())
    (tmp_path / "ca").chmod(0o755)
    CaHost.open(tmp_path / "ca")
    assert (tmp_path / "ca").stat().st_mode & 0o777 == 0o700
    assert "others could enter" in caplog.text


def test_the_ca_hands_out_no_token_for_a_name_that_reads_like_a_serial_number(ca):
    with pytest.raises(CertificateError, match="reads like a serial number"):
        ca.token("f" * 32)


def test_a_register_from_an_old_copy_is_refused(tmp_path):
    """Its tokens would count again, and its revocations would be forgotten: the log remembers more than it does."""
    host = CaHost.create(tmp_path / "ca", FEDERATION, CaSettings(), now=now())
    old = (tmp_path / "ca" / "register.sqlite").read_bytes()
    token = host.token(Role.NODE, "basel", "client-1", now=now())[0]
    host.enrol(token, make_csr(Signer.generate()), now=now())
    (tmp_path / "ca" / "register.sqlite").write_bytes(old)
    with pytest.raises(StorageError, match="old copy"):
        CaHost.open(tmp_path / "ca")


def test_a_crash_between_register_and_log_is_caught_up(tmp_path, monkeypatch):
    host = CaHost.create(tmp_path / "ca", FEDERATION, CaSettings(), now=now())
    token = host.token(Role.NODE, "basel", "client-1", now=now())[0]
    monkeypatch.setattr(CaHost, "_settle", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        host.enrol(token, make_csr(Signer.generate()), now=now())
    monkeypatch.undo()
    again = CaHost.open(tmp_path / "ca")
    with TransparencyLog.open(tmp_path / "ca" / "log", again._log_signer, durable=False) as log:
        assert len(log) == 1


def test_a_new_intermediate_is_taken_up_by_the_running_service(tmp_path):
    with running(tmp_path) as here:
        before = here.enrol("client-1")
        CaHost.open(tmp_path / "ca").renew_intermediate(now=now() + timedelta(seconds=2))
        after = here.enrol("client-2")
        assert before.intermediate_der != after.intermediate_der == (tmp_path / "ca" / "intermediate.der").read_bytes()
        verified(here, here.host.bundle(now=now()))


def test_a_ca_with_a_passphrase(tmp_path):
    host = CaHost.create(tmp_path / "ca", FEDERATION, CaSettings(), now=now(), passphrase=b"open sesame")
    for key in ("root-key.pem", "intermediate-key.pem", "log-key.pem", "tls/key.pem"):
        assert b"ENCRYPTED" in (tmp_path / "ca" / key).read_bytes()
        assert (tmp_path / "ca" / key).stat().st_mode & 0o777 == 0o600
    CaHost.open(tmp_path / "ca", passphrase=b"open sesame")
    serialization.load_pem_private_key(host.service_key_pem(b"open sesame"), password=None)
    for wrong in (None, b"open barley"):
        with pytest.raises(StorageError):
            CaHost.open(tmp_path / "ca", passphrase=wrong)


def test_a_folder_that_is_there_is_not_overwritten(tmp_path):
    CaHost.create(tmp_path / "ca", FEDERATION, CaSettings(), now=now())
    before = (tmp_path / "ca" / "root.der").read_bytes()
    with pytest.raises(StorageError, match="nothing may be there"):
        CaHost.create(tmp_path / "ca", FEDERATION, CaSettings(), now=now())
    assert (tmp_path / "ca" / "root.der").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["ca"]
    with pytest.raises(StorageError, match="fedsec ca init"):
        CaHost.open(tmp_path / "none")


@pytest.mark.parametrize("text", ["cohort = 1", "cohort_size = 0", "cohort_size = true", 'cohort_size = "64"', 'server = "../x"', 'address = "x"', "auto_roster = 1", "roster_days = 8", "roster_days = 0", "crl_hours = 73", "crl_hours = 1.5", "not toml", "\xff"])  # fmt: skip
def test_settings_that_cannot_be_are_refused(tmp_path, text):
    (tmp_path / "ca.toml").write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError):
        load_ca_settings(tmp_path)


def test_settings_read_back(tmp_path):
    for settings in (
        CaSettings(),
        CaSettings(address="[::1]:9443", server="b", cohort_size=7, auto_roster=False, roster_days=3, crl_hours=6),
    ):
        save_ca_settings(tmp_path, settings)
        assert load_ca_settings(tmp_path) == settings
    with pytest.raises(StorageError):
        load_ca_settings(tmp_path / "none")


def test_lists_are_as_long_as_the_settings_say_and_looked_after_without_a_caller(tmp_path):
    host = CaHost.create(tmp_path / "ca", FEDERATION, CaSettings(roster_days=2, crl_hours=4), now=now())
    for role, name, site in ((Role.SERVER, "main", None), (Role.NODE, "client-1", "basel")):
        signer = Signer.generate()
        host.issue(Binding(role, site, name, signer.public_key), make_csr(signer), now=now())
    read = lambda: (  # noqa: E731
        x509.load_der_x509_crl((tmp_path / "ca" / "crl.der").read_bytes()),
        Roster.decode((tmp_path / "ca" / "roster.json").read_bytes()),
    )
    crl, roster = read()
    assert crl.next_update_utc - crl.last_update_utc == timedelta(hours=4)
    assert roster.not_after - roster.not_before == timedelta(days=2, minutes=5)
    host.keep_current(now=now() + timedelta(minutes=59))
    assert read() == (crl, roster)
    host.keep_current(now=now() + timedelta(hours=25))
    newer_crl, newer = read()
    assert (newer.version, newer_crl.last_update_utc > crl.last_update_utc) == (roster.version + 1, True)


def test_a_key_may_be_kept_when_its_certificate_ended(ca, tmp_path):
    folder = tmp_path / "identity"
    first = enrol_folder(folder, ca.token("keeper"), address=ca.address)
    with pytest.raises(StorageError, match="--keep-key"):
        enrol_folder(folder, ca.token("keeper"), address=ca.address)
    second = enrol_folder(folder, ca.token("keeper"), address=ca.address, keep_key=True)
    assert (second.signer.public_key, second.root_der) == (first.signer.public_key, first.root_der)
    assert second.serial_number != first.serial_number
    with pytest.raises(CertificateError, match="another name"):
        enrol_folder(folder, ca.token("somebody-else"), address=ca.address, keep_key=True)
    assert load_identity(folder).serial_number == second.serial_number


def test_a_used_token_with_another_key_is_logged_as_an_alarm(ca, caplog):
    token = ca.token("alarmed")
    enrol(ca.address, token, Signer.generate(), timeout_s=10)
    with caplog.at_level(logging.ERROR, logger="fedsec.enrolment"), pytest.raises(CertificateError, match="used before"):
        enrol(ca.address, token, Signer.generate(), timeout_s=10)
    (line,) = [json.loads(record.getMessage()) for record in caplog.records if record.levelno == logging.ERROR]
    assert (line["outcome"], line["method"]) == ("alarm", "Enrol")
    assert token not in caplog.text
    assert "alarmed" in [alarm.name for alarm in ca.host.alarms()]


@pytest.mark.parametrize("minutes", [0, -1, 15.1, 600])
def test_a_token_lives_a_quarter_of_an_hour_at_most(ca, minutes):
    with pytest.raises(ConfigError, match="a token lives"):
        ca.host.token(Role.NODE, "basel", "x", lifetime=timedelta(minutes=minutes), now=now())


def waited_for(condition, within_s=30.0):
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class TestLimits:
    def test_a_bucket_empties_and_fills_again(self):
        limit = RateLimit(burst=3, per_s=0.5)
        assert [limit.allows("a", 0.0) for _ in range(4)] == [True, True, True, False]
        assert limit.allows("b", 0.0)
        assert [limit.allows("a", 2.0), limit.allows("a", 2.0)] == [True, False]
        assert not limit.allows("a", 1.0)
        assert [limit.allows("a", 1e6, cost=0.0) for _ in range(9)] == [True] * 9

    def test_the_number_of_addresses_is_bounded(self):
        limit = RateLimit(burst=1, per_s=0.0)
        for number in range(MAX_ADDRESSES + 10):
            limit.allows(str(number), 0.0)
        assert len(limit._buckets) == MAX_ADDRESSES

    def test_guessing_is_stopped_while_the_lists_go_on(self, tmp_path, monkeypatch):
        monkeypatch.setattr(enrolment_service, "REFUSALS", {"burst": 3.0, "per_s": 0.0})
        with running(tmp_path) as here, here.channel() as channel:
            call = channel.unary_unary(f"/{SERVICE}/Enrol")
            codes = []
            for _ in range(5):
                with pytest.raises(grpc.RpcError) as caught:
                    call(encode(EnrolRequest("guess", b"")), timeout=10)
                codes.append(caught.value.code())
            assert codes == [grpc.StatusCode.PERMISSION_DENIED] * 3 + [grpc.StatusCode.RESOURCE_EXHAUSTED] * 2
            with pytest.raises(EnrolmentUnavailable, match="too many requests"):
                here.enrol("late")
            fetch_crl(channel)

    @pytest.mark.parametrize("body", [None, encode(Empty())])
    def test_half_open_calls_stop_nobody(self, tmp_path, monkeypatch, body):
        """Headers and no end, from one address, as many as there were workers once and more; the list is there for others meanwhile."""
        monkeypatch.setattr(enrolment_service, "REQUEST_WITHIN_S", 2.0)
        monkeypatch.setattr(enrolment_service, "address_of", lambda peer: peer)  # each connection is an address of its own
        with running(tmp_path) as here, contextlib.ExitStack() as stack:
            closed = threading.Event()
            stack.callback(closed.set)

            def never():
                if body is not None:
                    yield body
                closed.wait(30)

            ended = []
            for _ in range(2 * enrolment_service.CALLS_OF_ONE):
                channel = stack.enter_context(here.channel())
                call = channel.stream_unary(f"/{SERVICE}/Crl").future(never())
                ended.append(call)
                stack.callback(call.cancel)
            began = time.monotonic()
            with here.channel() as other:
                fetch_crl(other)
            assert time.monotonic() - began < 2
            for call in ended:
                assert call.exception(timeout=10).code() in {grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED}
            assert time.monotonic() - began < 6

    def test_eight_addresses_and_more_that_keep_on_stop_nobody(self, tmp_path):
        """Each holds as many calls as one address may, without a request, and opens another as soon as one is ended; idle connections beside."""
        stop, opened = threading.Event(), []

        def keep_on(number):
            option = [("grpc.ssl_target_name_override", "fedsec-enrolment"), ("grpc.use_local_subchannel_pool", 1)]
            credentials = grpc.ssl_channel_credentials(to_pem(here.host.service.certificate_der))
            with contextlib.ExitStack() as stack:
                calls = []
                way = stack.enter_context(coming_from(f"127.0.0.{number}", here.address))
                for _ in range(enrolment_service.CALLS_OF_ONE):
                    channel = stack.enter_context(grpc.secure_channel(way, credentials, options=option))
                    calls.append(channel.stream_unary(f"/{SERVICE}/Crl"))
                while not stop.is_set():
                    under_way = [call.future(iter(lambda: stop.wait(300), True)) for call in calls]
                    opened.extend(under_way)
                    while not stop.wait(0.05) and not any(call.done() for call in under_way):
                        pass
                    for call in under_way:
                        call.cancel()

        with running(tmp_path) as here, futures.ThreadPoolExecutor(10) as pool:
            where = ("127.0.0.1", int(here.address.rpartition(":")[2]))
            idle = [socket.create_connection(where, source_address=(f"127.0.0.{20 + number % 8}", 0)) for number in range(300)]
            try:
                for number in range(2, 12):
                    pool.submit(keep_on, number)
                waited_for(lambda: len(opened) >= 10 * enrolment_service.CALLS_OF_ONE)
                for name in ("honest-1", "honest-2", "honest-3"):
                    began = time.monotonic()
                    enrol(here.address, here.token(name), Signer.generate(), timeout_s=10)
                    assert time.monotonic() - began < 4
                waited_for(lambda: sum(not call.done() for call in opened) >= enrolment_service.WAITING // 2)  # they are still there
            finally:
                stop.set()
                for connection in idle:
                    connection.close()
                pool.shutdown()

    def test_who_has_most_waiting_is_let_go_and_of_them_the_oldest(self):
        room, gone = WaitingRoom(4), []
        places = {name: room.enter(name.partition("-")[0], lambda name=name: gone.append(name)) for name in ("a-1", "b-1", "b-2", "c-1")}
        room.enter("d", lambda: gone.append("d"))
        assert gone == ["b-1"]
        room.leave(places["a-1"])
        room.leave(places["a-1"])  # twice does no harm
        room.enter("e", lambda: gone.append("e"))
        assert gone == ["b-1"]
        room.enter("f", lambda: gone.append("f"))
        assert gone == ["b-1", "b-2"]  # one each: the oldest

    def test_lists_to_one_address_are_so_many_bytes_a_second(self, tmp_path, monkeypatch):
        monkeypatch.setattr(enrolment_service, "LISTS", {"burst": 4000.0, "per_s": 0.0})
        with running(tmp_path) as here, here.channel() as channel:
            with pytest.raises(EnrolmentUnavailable, match="too many lists"):
                for _ in range(40):
                    fetch_crl(channel)
            here.enrol("client-1")  # whoever enrols is not a reader of lists

    def test_half_open_calls_of_one_address_are_few_and_do_not_last(self, tmp_path, monkeypatch):
        monkeypatch.setattr(enrolment_service, "REQUEST_WITHIN_S", 2.0)
        with running(tmp_path) as here, contextlib.ExitStack() as stack:
            closed = threading.Event()
            stack.callback(closed.set)
            calls = []
            for _ in range(enrolment_service.CALLS_OF_ONE + 3):  # a connection each: one of gRPC's waits with more than the server allows
                channel = stack.enter_context(here.channel())
                calls.append(channel.stream_unary(f"/{SERVICE}/Crl").future(iter(lambda: closed.wait(30), True)))
            codes = [call.exception(timeout=10).code() for call in calls]
            assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 3
            here.enrol("after")
            for _ in range(2 * enrolment_service.CALLS_OF_ONE):  # nobody is counted for good
                here.raw("Crl", encode(Empty()))

    def test_a_call_with_two_requests_is_none(self, tmp_path):
        with running(tmp_path) as here, here.channel() as channel:
            with pytest.raises(grpc.RpcError) as caught:
                channel.stream_unary(f"/{SERVICE}/Crl")(iter([encode(Empty())] * 2), timeout=10)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    def test_a_flood_is_stopped(self, tmp_path, monkeypatch):
        monkeypatch.setattr(enrolment_service, "CALLS", {"burst": 5.0, "per_s": 0.0})
        with running(tmp_path) as here, here.channel() as channel:
            for _ in range(5):
                fetch_crl(channel)
            with pytest.raises(EnrolmentUnavailable, match="too many requests"):
                fetch_crl(channel)
            fetch_bundle(channel)


@pytest.mark.parametrize(
    ("peer", "address"),
    [("ipv4:1.2.3.4:5", "1.2.3.4"), ("ipv6:%5B::1%5D:5", "::/64"), ("ipv6:[2001:db8::7]:5", "2001:db8::/64"), ("ipv6:%5B::ffff:1.2.3.4%5D:5", "1.2.3.4"), ("ipv6:x", "ipv6"), ("unix:", "unix"), ("", "")],
)  # fmt: skip
def test_addresses_of_callers(peer, address):
    assert address_of(peer) == address


SERVE = """
import os, signal, sys
from pathlib import Path
from fedsec.edge.ca_host import CaHost
from fedsec.edge.enrolment_service import make_server
host = CaHost.open(Path(sys.argv[1]))
if sys.argv[2] == "die":
    CaHost._settle = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
server, port = make_server(host, "127.0.0.1:0")
server.start()
print(port, flush=True)
sys.stdin.readline()
server.stop(0).wait()
"""


@contextlib.contextmanager
def service_process(folder, how):
    process = subprocess.Popen([sys.executable, "-c", SERVE, str(folder), how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield f"127.0.0.1:{process.stdout.readline().strip()}", process
    finally:
        process.kill()
        process.communicate(timeout=20)


def test_killed_between_register_and_answer(tmp_path):
    """SIGKILL after the row is written: the device asks again with the same key and gets that certificate; a thief of the token does not."""
    host = CaHost.create(tmp_path / "ca", FEDERATION, CaSettings(), now=now())
    token = host.token(Role.NODE, "basel", "client-1", now=now())[0]
    with service_process(tmp_path / "ca", "die") as (address, process):
        with pytest.raises(EnrolmentUnavailable):
            enrol_folder(tmp_path / "identity", token, address=address)
        assert process.wait(20) == -signal.SIGKILL
    assert not (tmp_path / "identity").exists()
    with service_process(tmp_path / "ca", "live") as (address, _):
        with pytest.raises(CertificateError, match="used before"):
            enrol(address, token, Signer.generate(), timeout_s=10)
        identity = enrol_folder(tmp_path / "identity", token, address=address)
    with Register.open(tmp_path / "ca" / "register.sqlite") as register:
        assert [record.serial_number for record in register.certificates()] == [identity.serial_number]
    CaHost.open(tmp_path / "ca")


def test_concurrent_devices_and_an_operator_beside_the_service(tmp_path):
    """Six enrol at once while lists are made and another is revoked: everybody gets a certificate, nothing is lost, the log is whole."""
    with running(tmp_path) as here:
        here.enrol("main", Role.SERVER)
        here.enrol("leaving")
        here.enrol("staying")
        tokens = {name: here.token(name) for name in (f"client-{number}" for number in range(6))}
        with futures.ThreadPoolExecutor(8) as pool:
            jobs = [pool.submit(enrol, here.address, token, Signer.generate(), timeout_s=30) for token in tokens.values()]
            jobs.append(pool.submit(lambda: CaHost.open(tmp_path / "ca").revoke("leaving", Reason.UNSPECIFIED, now=now())))
            jobs.append(pool.submit(lambda: CaHost.open(tmp_path / "ca").roster(now=now())))
            for job in jobs:
                job.result()
        bundle = verified(here, here.host.bundle(now=now()))
        assert list(bundle.roster.roster.by_id) == sorted([*tokens, "staying"])
        assert json.loads((tmp_path / "ca" / "roster.json").read_bytes())["version"] == bundle.roster.roster.version
    assert hashlib.sha256(here.host.service.certificate_der).digest() == here.host.service.fingerprint
    assert os.listdir(tmp_path) == ["ca"]
