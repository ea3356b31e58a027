"""The doctor on real handshakes, one fault each: gRPC shows most of these as "Socket closed", the doctor names each by itself.

The server is a gRPC server with the gateway's own credentials on loopback; the folders are real; each chain is drawn in the docstring.
"""

import contextlib
import shutil
import socket
import ssl
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent))

from doctor_world import CLIENT_USAGE, DAY, FEDERATION, SERVER_USAGE, World, ask, client_home, faults, gateway, server_home

from fedsec.cli.main import app
from fedsec.edge.doctor_network import Address, probe_session
from fedsec.errors import StorageError
from fedsec.identity.folder import make_identity
from fedsec.identity.names import Role
from fedsec.identity.tls import to_pem
from fedsec.identity.tokens import Token, make_token
from fedsec.signing import Signer


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture(scope="module")
def server(world):
    return world.party(Role.SERVER, "main")


@pytest.fixture
def healthy(world, server):
    with gateway(server, crl=world.crl()) as address:
        yield address


def test_all_is_in_order_and_every_check_was_made(world, healthy, tmp_path):
    found, report = ask(client_home(tmp_path / "home", healthy, world.party()))
    assert faults(found) == set()
    assert report.not_checked == ()
    assert {"connection.ok", "session.ok", "clock.ok", "revocation.ok", "idle.ok", "server-certificate.ok"} <= found.keys()


def test_grpc_itself_says_the_same_for_different_faults(world, healthy):
    """Why there is a doctor: what an agent's channel is told in three of the cases below."""
    seen = set()
    for party in (world.party(when=world.now - 4 * DAY), world.party(when=world.now + DAY), world.party(ca=world.other)):
        # a client of another CA still pins our root here, so that the server's side refuses
        identity = make_identity(party.signer, party.certificate_der, party.intermediate_der, party.root_der)
        object.__setattr__(identity, "root_der", world.ca.root_der)
        host, port = healthy.split(":")
        facts = probe_session(
            Address(host, int(port)),
            identity,
            bytes(32),
            server_name="main",
            clock=lambda: datetime.now(UTC),
            version="x",
            idle_s=0,
            timeout_s=3,
        )
        seen.add((facts.status, "expire" in facts.detail, "valid" in facts.detail, "issuer" in facts.detail))
    assert seen == {("UNAVAILABLE", False, False, False)}


def test_no_certificate(healthy, tmp_path):
    """root -- intermediate -- server    (nothing of ours)"""
    found, report = ask(client_home(tmp_path / "home", healthy, None))
    assert faults(found) == {"certificate.missing", "connection.no-certificate"}
    assert "enroll" in found["certificate.missing"].mend
    assert {"session", "clock", "revocation", "idle"} <= set(report.not_checked)


def test_expired(world, healthy, tmp_path):
    """root -- intermediate -- node!: ended a day ago."""
    found, _ = ask(client_home(tmp_path / "home", healthy, world.party(when=world.now - 4 * DAY)))
    assert faults(found) == {"certificate.expired", "connection.refused"}
    assert "24 hours ago" in found["certificate.expired"].text
    assert "expired" in found["connection.refused"].text


def test_not_yet_valid(world, healthy, tmp_path):
    """root -- intermediate -- node!: begins tomorrow."""
    found, _ = ask(client_home(tmp_path / "home", healthy, world.party(when=world.now + DAY)))
    assert faults(found) == {"certificate.not-yet-valid", "connection.refused"}
    assert "clock" in found["certificate.not-yet-valid"].mend


def test_our_certificate_is_of_another_ca_than_our_root(world, healthy, tmp_path):
    """root -- intermediate    other root -- other intermediate! -- node: mixed-up folders."""
    mixed = world.party(ca=world.other)
    party = type(mixed)(mixed.signer, mixed.certificate_der, world.ca.intermediate_der, world.ca.root_der)
    found, _ = ask(client_home(tmp_path / "home", healthy, party))
    assert faults(found) == {"certificate.wrong-ca", "connection.refused"}


def test_our_whole_folder_is_of_another_ca(world, healthy, tmp_path):
    """root -- intermediate -- server    other root! -- other intermediate -- node: sound in itself, but the server's CA is another."""
    found, _ = ask(client_home(tmp_path / "home", healthy, world.party(ca=world.other)))
    assert faults(found) == {"server-certificate.wrong-ca", "certificate.refused"}


@pytest.mark.parametrize("usage", [SERVER_USAGE, None], ids=["serverAuth", "none"])
def test_wrong_usage(world, healthy, tmp_path, usage):
    """root -- intermediate -- node!: a server's purpose (refused by gRPC), or none (which gRPC lets pass)."""
    found, _ = ask(client_home(tmp_path / "home", healthy, world.with_usage(world.party(), usage)))
    assert faults(found) - {"connection.refused"} == {"certificate.wrong-usage"}
    assert ("connection.refused" in found) == (usage is not None)


def test_a_servers_identity_in_a_clients_home(world, healthy, tmp_path):
    """root -- intermediate -- server!: whoever copied the wrong folder."""
    found, _ = ask(client_home(tmp_path / "home", healthy, world.party(Role.SERVER, "second")))
    assert faults(found) == {"certificate.wrong-role", "certificate.wrong-usage", "connection.refused"}


def test_another_key(world, healthy, tmp_path):
    """root -- intermediate -- node    key!: the key of somebody else."""
    party = world.party()
    found, _ = ask(client_home(tmp_path / "home", healthy, type(party)(Signer.generate(), *list(vars(party).values())[1:])))
    assert {"certificate.other-key"} <= faults(found)
    assert "certificate.ok" not in found


def test_revoked(world, server, tmp_path):
    """root -- intermediate -- node!: on the list that the gateway hands out."""
    party = world.party()
    with gateway(server, crl=world.crl(party)) as address:
        found, _ = ask(client_home(tmp_path / "home", address, party))
    assert faults(found) == {"revocation.revoked"}


def test_the_gateway_says_that_we_are_revoked(world, server, tmp_path):
    with gateway(server, refuse=(grpc.StatusCode.UNAUTHENTICATED, "revoked: the certificate was revoked")) as address:
        found, _ = ask(client_home(tmp_path / "home", address, world.party()))
    assert faults(found) == {"revocation.revoked"}


@pytest.mark.parametrize(
    ("when", "code"),
    [(-8 * DAY, "server-certificate.expired"), (DAY, "server-certificate.not-yet-valid")],
)
def test_the_servers_certificate_is_out_of_its_time(world, tmp_path, when, code):
    """root -- intermediate -- server!"""
    with gateway(world.party(Role.SERVER, "main", when=world.now + when)) as address:
        found, _ = ask(client_home(tmp_path / "home", address, world.party()))
    assert code in faults(found)
    assert not [item for item in faults(found) if item.startswith("certificate.")]


@pytest.mark.parametrize("usage", [CLIENT_USAGE, None], ids=["clientAuth", "none"])
def test_the_servers_certificate_has_a_wrong_usage(world, server, tmp_path, usage):
    """root -- intermediate -- server!"""
    with gateway(world.with_usage(server, usage)) as address:
        found, _ = ask(client_home(tmp_path / "home", address, world.party()))
    assert "server-certificate.wrong-usage" in faults(found)


def test_a_client_plays_the_server(world, tmp_path):
    """root -- intermediate -- node!: OpenFL's fault; here the name and the purpose say it."""
    with gateway(world.party(name="client-9")) as address:
        found, _ = ask(client_home(tmp_path / "home", address, world.party()))
    assert {"server-certificate.wrong-role", "server-certificate.wrong-usage"} <= faults(found)


def test_another_server_of_the_same_federation(world, tmp_path):
    """root -- intermediate -- server "second": sound, trusted, and not the one that we want."""
    with gateway(world.party(Role.SERVER, "second"), crl=world.crl()) as address:
        found, _ = ask(client_home(tmp_path / "home", address, world.party()))
    assert faults(found) == {"server-certificate.another-server"}
    assert "second" in found["server-certificate.another-server"].text


def test_a_server_that_is_not_of_our_ca(world, tmp_path):
    """root    other root! -- other intermediate -- server"""
    with gateway(world.party(Role.SERVER, "main", ca=world.other)) as address:
        found, _ = ask(client_home(tmp_path / "home", address, world.party()))
    assert {"server-certificate.wrong-ca"} <= faults(found)


def test_somebody_between_holds_a_certificate_but_not_the_servers_key(world, server, tmp_path):
    """Hello must be signed with the server's key over what this connection showed."""
    with gateway(server, crl=world.crl(), signer=Signer.generate()) as address:
        found, _ = ask(client_home(tmp_path / "home", address, world.party()))
    assert faults(found) == {"session.unproven", "clock.unknown"}
    assert "clock.ok" not in found


@pytest.mark.parametrize(("seconds", "code"), [(45, "clock.drifts"), (-45, "clock.drifts"), (400, "clock.off"), (-400, "clock.off")])
def test_clocks_differ(world, server, tmp_path, seconds, code):
    with gateway(server, crl=world.crl(), shift=timedelta(seconds=seconds)) as address:
        found, _ = ask(client_home(tmp_path / "home", address, world.party()))
    assert faults(found) == {code}
    assert ("behind" if seconds > 0 else "ahead of") in found[code].text


def test_a_clock_that_is_days_off_is_not_called_an_expired_certificate_only(world, healthy, tmp_path):
    """The server accepts a certificate that by this clock has ended: the clock is wrong."""
    found, _ = ask(client_home(tmp_path / "home", healthy, world.party()), clock=lambda: datetime.now(UTC) + 5 * DAY)
    assert {"clock.off", "certificate.expired"} <= faults(found)


def test_tls_1_2_is_too_old(world, server, tmp_path):
    with tls_server(server, lambda context: setattr(context, "maximum_version", ssl.TLSVersion.TLSv1_2)) as address:
        found, _ = ask(client_home(tmp_path / "home", address, world.party()))
    assert {"tls.old-version", "tls.no-http2"} <= faults(found)


def test_the_enrolment_service_instead_of_the_gateway(world, tmp_path):
    """service!: signed by itself, as the CA's own service is."""
    from fedsec.edge.ca_host import CaHost
    from fedsec.edge.ca_settings import CaSettings

    host = CaHost.create(tmp_path / "ca", FEDERATION, CaSettings(), now=world.now)
    key = Signer.from_pem((host.folder / "tls" / "key.pem").read_bytes())
    with tls_server(type(world.party())(key, host.service.certificate_der, b"", b"")) as address:
        found, _ = ask(client_home(tmp_path / "home", address, world.party()))
    assert "server-certificate.self-signed" in faults(found)
    assert not {"server-certificate.unreadable", "session.failed"} & faults(found)


def test_nothing_listens(world, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    found, report = ask(client_home(tmp_path / "home", f"127.0.0.1:{port}", world.party()))
    assert faults(found) == {"port.refused"}
    assert {"tls", "session", "clock"} <= set(report.not_checked)


def test_a_port_that_never_answers_in_tls(world, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        found, _ = ask(client_home(tmp_path / "home", f"127.0.0.1:{silent.getsockname()[1]}", world.party()), timeout_s=0.3)
    assert faults(found) == {"tls.closed"}


def test_another_service_listens(world, tmp_path):
    with answering(b"SSH-2.0-OpenSSH_9.6\r\n") as address:
        found, _ = ask(client_home(tmp_path / "home", address, world.party()))
    assert faults(found) == {"tls.not-tls"}


def test_a_connection_that_is_reset(world, tmp_path):
    with answering(b"") as address:
        found, _ = ask(client_home(tmp_path / "home", address, world.party()))
    assert faults(found) == {"tls.closed"}


def test_a_name_that_does_not_resolve(world, tmp_path):
    found, _ = ask(client_home(tmp_path / "home", "no-such-host.invalid:9443", world.party()))
    assert faults(found) == {"name.unresolved"}


def test_a_quiet_connection_is_dropped_on_the_way(world, server, tmp_path):
    with gateway(server, crl=world.crl()) as address, forgetful_relay(address, idle_s=0.3) as relay:
        found, _ = ask(client_home(tmp_path / "home", relay, world.party()), idle_s=1.0)
    assert faults(found) == {"idle.closed"}


def token_of(world, *, address=None, ca=None, when=timedelta(minutes=10), role=Role.NODE, service=bytes(32), federation=None):
    import hashlib

    ca = ca or world.ca
    token = Token(
        jti=bytes(16), federation=federation or ca.federation, role=role, site="basel" if role is Role.NODE else None, name="client-7",
        not_after=(world.now + when).replace(microsecond=0), root_sha256=hashlib.sha256(ca.root_der).digest(), service_sha256=service, address=address,
    )  # fmt: skip
    return make_token(ca.signer, token)


def test_tokens(world, tmp_path):
    home = client_home(tmp_path / "home", "127.0.0.1:1", None)
    enrolled = client_home(tmp_path / "enrolled", "127.0.0.1:1", world.party())

    def codes(token, where=home):
        return {code for code in faults(ask(where, token=token, quick=True)[0]) if code.startswith("token.")}

    assert codes(token_of(world, address="ca.example:9443")) == set()
    assert codes(token_of(world)) == {"token.no-address"}
    assert codes(token_of(world, address="ca.example:9443", when=-timedelta(seconds=2))) == {"token.expired"}
    assert codes(token_of(world, address="ca.example:9443", role=Role.SERVER)) == {"token.other-role"}
    assert codes(token_of(world, address="ca.example:9443"), enrolled) == {"token.used"}
    assert codes(token_of(world, address="ca.example:9443", ca=world.other), enrolled) == {"token.other-root"}
    assert codes(token_of(world, address="ca.example:9443", federation="lungs.example"), enrolled) == {"token.other-federation"}
    for broken in ("", "nonsense", token_of(world)[:-2], "fedsec-token-1..", "fedsec-token-1." + "A" * 5000 + ".AA", "\0" * 40):
        assert codes(broken) == {"token.unreadable"}


def test_a_token_whose_service_is_another_or_away(world, server, tmp_path):
    home = client_home(tmp_path / "home", "127.0.0.1:1", None)
    with tls_server(server) as address:
        found, _ = ask(home, token=token_of(world, address=address))
    assert "token.other-service" in found
    found, _ = ask(home, token=token_of(world, address=address))
    assert "token.unreachable" in found


def test_no_secret_is_in_a_report(world, healthy, tmp_path):
    token = token_of(world)
    home = client_home(tmp_path / "home", healthy, world.party())
    _, report = ask(home, token=token, environment={"https_proxy": "http://user:hunter2@proxy.example:3128"})
    text = repr(report) + repr(report.to_json())
    key = (home / "identity" / "key.pem").read_text().splitlines()[1]
    assert not [secret for secret in (token, "hunter2", key) if secret in text]


@pytest.mark.parametrize("name", ["certificate.der", "intermediate.der", "root.der", "key.pem"])
@pytest.mark.parametrize("content", [b"", b"\x30\x82\xff\xff", b"\0" * 70_000], ids=["empty", "cut", "zeros"])
def test_a_damaged_file_is_a_finding_and_never_a_traceback(world, healthy, tmp_path, name, content):
    home = client_home(tmp_path / "home", healthy, world.party())
    (home / "identity" / name).write_bytes(content)
    found, _ = ask(home)
    assert faults(found) & {"certificate.unreadable", "certificate.missing", "certificate.wrong-ca", "issuer.unsound", "key.locked"}


def test_an_encrypted_key_without_its_passphrase(world, healthy, tmp_path):
    party = world.party()
    home = client_home(tmp_path / "home", healthy, party)
    (home / "identity" / "key.pem").write_bytes(party.signer.to_pem(passphrase=b"open sesame"))
    found, report = ask(home)
    assert faults(found) == {"key.locked"}  # and no word of a certificate that was not shown: nobody knows what the server would say
    assert "connection" in report.not_checked
    assert "no passphrase is given" in str(report.findings)
    assert faults(ask(home, passphrase=b"open sesame")[0]) == set()
    found, report = ask(home, passphrase=b"open, sesame")
    assert faults(found) == {"key.locked"}
    assert "under this passphrase" in str(report.findings)


def test_the_command_reads_no_passphrase_that_others_may_read(tmp_path):
    open_file = tmp_path / "passphrase"
    open_file.write_text("open sesame")
    open_file.chmod(0o644)
    done = CliRunner().invoke(app, ["doctor", "--home", str(tmp_path), "--passphrase-file", str(open_file), "--quick"])
    assert isinstance(done.exception, StorageError)
    assert "may be read by others" in str(done.exception)


def test_modes(world, healthy, tmp_path):
    home = client_home(tmp_path / "home", healthy, world.party())
    (home / "identity" / "key.pem").chmod(0o640)
    home.chmod(0o770)
    (home / "identity").chmod(0o755)
    found, _ = ask(home)
    assert {"key.readable", "folder.writable", "folder.readable"} <= faults(found)
    shutil.move(home / "identity" / "key.pem", tmp_path / "key.pem")
    (home / "identity" / "key.pem").symlink_to(tmp_path / "key.pem")
    assert "key.link" in faults(ask(home)[0])


def test_a_servers_home(world, server, tmp_path):
    with gateway(server) as address:
        home = server_home(tmp_path / "home", address, server, world.crl())
        found, report = ask(home)
        assert faults(found) == set()
        assert report.kind == "server"
        assert report.not_checked == ()
        (home / "federation" / "crl.der").write_bytes(world.crl(when=world.now - 5 * DAY))
        assert faults(ask(home)[0]) == {"revocation.ended"}


@contextlib.contextmanager
def tls_server(party, change=lambda context: None):
    """A TLS server that is not gRPC."""
    import tempfile

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    change(context)
    with tempfile.NamedTemporaryFile() as handle:
        chain = [der for der in (party.certificate_der, party.intermediate_der) if der]
        handle.write(to_pem(*chain) + party.signer.to_pem())
        handle.flush()
        context.load_cert_chain(handle.name)

    def serve(connection):
        with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as wrapped:
            wrapped.recv(100)

    with serving(serve) as address:
        yield address


@contextlib.contextmanager
def serving(serve):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.1)
        stop = threading.Event()

        def accept():
            while not stop.is_set():
                try:
                    connection, _ = listening.accept()
                except OSError:
                    continue
                connection.settimeout(2)
                with connection:
                    serve(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}"
        finally:
            stop.set()
            thread.join()


@contextlib.contextmanager
def answering(words):
    def serve(connection):
        with contextlib.suppress(OSError):
            connection.recv(10)
            connection.sendall(words)

    with serving(serve) as address:
        yield address


@contextlib.contextmanager
def forgetful_relay(target, *, idle_s):
    """Passes bytes on, and closes a connection that was quiet for ``idle_s``: a NAT or load balancer with a short memory."""
    host, _, port = target.rpartition(":")
    threads = []

    def pump(one, other):
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
        for item in (one, other):
            with contextlib.suppress(OSError):
                item.shutdown(socket.SHUT_RDWR)

    def serve(connection):
        up = socket.create_connection((host, int(port)))
        for item in (connection, up):
            item.settimeout(idle_s)
        pair = [threading.Thread(target=pump, args=args) for args in ((connection, up), (up, connection))]
        for thread in pair:
            thread.start()
        threads.extend(pair)
        for thread in pair:
            thread.join()
        up.close()

    with serving(serve) as address:
        yield address
