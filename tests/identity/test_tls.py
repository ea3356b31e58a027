"""Real handshakes on loopback, one defect each: what TLS refuses by itself, and what only ``verify_peer`` refuses.

Every function draws its chain from the pinned root on the left to the client's leaf on the right; ``!`` marks the defect. The server
does what the module asks of a handler: TLS 1.3, then the certificate, then the revocation list.
"""

import contextlib
import select
import socket
import ssl
import threading
from concurrent import futures
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from fedsec.errors import CertificateError, StorageError
from fedsec.identity.folder import make_identity
from fedsec.identity.names import Role
from fedsec.identity.revocation import RevocationList
from fedsec.identity.tls import channel_options, check_tls13, peer_certificate, secure_channel, server_credentials, server_target, to_pem
from fedsec.identity.verify import verify_peer
from fedsec.signing import Signer

NOW = datetime.now(tz=UTC).replace(microsecond=0)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
METHOD = "/test.Edge/Call"
TARGET = server_target("main")
BY_TLS, BY_US = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.PERMISSION_DENIED


class Live:
    """A server on loopback with the federation's credentials, and chains that are valid around now."""

    def __init__(self, pki):
        self.pki = pki
        self.root_der = pki.root(start=NOW - 9 * DAY, end=NOW + 3000 * DAY)
        self.intermediate_der = pki.intermediate(start=NOW - 8 * DAY, end=NOW + 300 * DAY)
        self.server_key = ec.generate_private_key(ec.SECP256R1())
        self.server_identity = self.new_server_identity()
        self.revoked = set()
        self.broken = False
        self.seen = []

    def new_server_identity(self, name="main", uri=None):
        names = self.pki.uris(uri or f"spiffe://{self.pki.federation}/server/{name}")
        der = self.leaf(Role.SERVER, key=self.server_key, subject=server_target(name), extensions={"names": (names, False)})
        return make_identity(Signer(self.server_key), der, self.intermediate_der, self.root_der)

    def leaf(self, role=Role.NODE, **changes):
        return self.pki.leaf(role, **{"start": NOW - HOUR, "end": NOW + 10 * HOUR, **changes})

    def load(self):
        if self.broken:
            raise StorageError("the folder is being mended")
        return self.server_identity

    def handle(self, request, context):
        try:
            check_tls13(context)
            der = peer_certificate(context)
            peer = verify_peer(
                der, intermediate_der=self.intermediate_der, root_der=self.root_der, federation=self.pki.federation, role=Role.NODE,
                now=datetime.now(tz=UTC),
            )  # fmt: skip
            RevocationList(1, NOW - HOUR, NOW + DAY, frozenset(self.revoked)).check(peer.serial_number)
        except CertificateError as error:
            context.abort(BY_US, str(error))
        self.seen.append(der)
        return peer.name.name.encode()

    @contextlib.contextmanager
    def serving(self, port=0):
        server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        handlers = {"Call": grpc.unary_unary_rpc_method_handler(self.handle)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Edge", handlers),))
        self.port = server.add_secure_port(f"127.0.0.1:{port}", server_credentials(self.load))
        server.start()
        try:
            yield self
        finally:
            server.stop(0).wait()

    def call(self, leaf=None, key=None, *, issuers=None, root=None):
        """One call over a connection of its own."""
        chain = None if leaf is None else to_pem(leaf, *([self.intermediate_der] if issuers is None else issuers))
        pem = None if leaf is None else private_pem(key or self.pki.leaf_key)
        credentials = grpc.ssl_channel_credentials(to_pem(root or self.root_der), pem, chain)
        with grpc.secure_channel(f"127.0.0.1:{self.port}", credentials, options=channel_options("main")) as channel:
            return channel.unary_unary(METHOD)(b"", timeout=10)

    def refused(self, by, leaf=None, key=None, because="", **how):
        with pytest.raises(grpc.RpcError) as caught:
            self.call(leaf, key, **how)
        assert (caught.value.code(), because in caught.value.details()) == (by, True), caught.value.details()


def private_pem(key):
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


@pytest.fixture(scope="module")
def live(pki):
    with Live(pki).serving() as found:
        yield found


def test_a_sound_client_is_answered(live):
    """root -- intermediate -- node: every rule holds, on both sides."""
    assert live.call(live.leaf()) == b"client-7"


def test_no_certificate(live):
    """root -- intermediate    (no leaf)!: the server asks, the client shows nothing."""
    live.refused(BY_TLS)


def test_expired(live):
    """root -- intermediate -- node!: ended a minute ago."""
    live.refused(BY_TLS, live.leaf(end=NOW - timedelta(minutes=1)))


def test_not_yet_valid(live):
    """root -- intermediate -- node!: begins in an hour."""
    live.refused(BY_TLS, live.leaf(start=NOW + HOUR))


def test_wrong_ca(live, pki):
    """root    other! -- node: the right issuer's name, another issuer's key."""
    live.refused(BY_TLS, live.leaf(issuer_key=pki.other_key))


def test_another_root(live, pki):
    """other root! -- other intermediate -- node: sound, under a root that is not pinned."""
    other_root = pki.root(key=pki.other_key, issuer_key=pki.other_key, start=NOW - 9 * DAY, end=NOW + 3000 * DAY)
    other = pki.intermediate(issuer_key=pki.other_key, start=NOW - 8 * DAY, end=NOW + 300 * DAY)
    live.refused(BY_TLS, live.leaf(), issuers=[other, other_root])


def test_self_signed(live, pki):
    """node!: signed by its own key."""
    live.refused(BY_TLS, live.leaf(issuer="leaf", issuer_key=pki.leaf_key), issuers=[])


def test_another_nodes_key(live, pki):
    """root -- intermediate -- node: a sound certificate that was copied, and not its key!."""
    live.refused(BY_TLS, live.leaf(), pki.other_key)


def test_wrong_extended_usage(live):
    """root -- intermediate -- node!: may act as a server only."""
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    live.refused(BY_TLS, live.leaf(extensions={"eku": (usage, False)}))


def test_a_server_is_no_client(live):
    """root -- intermediate -- server: the aggregator's own certificate, shown by a client!."""
    live.refused(BY_TLS, live.leaf(Role.SERVER))


def test_name_outside_the_constraint(live, pki):
    """root -- intermediate (hearts.example only) -- node! (lungs.example)."""
    live.refused(BY_TLS, live.leaf(extensions={"names": (pki.uris("spiffe://lungs.example/site/basel/node/client-7"), False)}))


def test_wrong_federation(live, pki):
    """root -- intermediate (lungs.example)! -- node of lungs.example: sound under our root, of another federation; TLS lets it in."""
    other = pki.intermediate(start=NOW - 8 * DAY, end=NOW + 300 * DAY, extensions={"names": (pki.constraint("lungs.example"), True)})
    leaf = live.leaf(extensions={"names": (pki.uris("spiffe://lungs.example/site/basel/node/client-7"), False)})
    live.refused(BY_US, leaf, issuers=[other], because="for the federation lungs.example, not hearts.example")


def test_no_extended_usage(live):
    """root -- intermediate -- node!: says nothing, and TLS takes it for anything."""
    live.refused(BY_US, live.leaf(extensions={"eku": None}), because="no ExtendedKeyUsage")


def test_no_name(live):
    """root -- intermediate -- node!: no alternative name; TLS refuses it only if the subject reads like a host name."""
    live.refused(BY_TLS, live.leaf(subject="leaf", extensions={"names": None}))
    live.refused(BY_US, live.leaf(extensions={"names": None}), because="no SubjectAlternativeName")


def test_two_names(live, pki):
    """root -- intermediate -- node!: two URIs; TLS lets it in."""
    names = pki.uris(pki.node_uri, pki.node_uri + "8")
    live.refused(BY_US, live.leaf(extensions={"names": (names, False)}), because="2 alternative names")


def test_lifetime_beyond_policy(live):
    """root -- intermediate -- node!: good for ten days; TLS lets it in."""
    live.refused(BY_US, live.leaf(end=NOW + 10 * DAY), because="longer than")


def test_an_administrator_is_no_node(live):
    """root -- intermediate -- admin: sound, in another role than asked for!."""
    live.refused(BY_US, live.leaf(Role.ADMIN), because="names a admin")


def test_revoked(live):
    """root -- intermediate -- node!: on the revocation list, which gRPC cannot look at."""
    leaf = live.leaf()
    assert live.call(leaf) == b"client-7"
    live.revoked.add(x509.load_der_x509_certificate(leaf).serial_number)
    live.refused(BY_US, leaf, because="was revoked")


@pytest.mark.parametrize("make_key", [lambda: rsa.generate_private_key(65537, 1024), lambda: ec.generate_private_key(ec.SECP384R1())], ids=["RSA-1024", "P-384"])  # fmt: skip
def test_weak_or_other_key(live, make_key):
    """root -- intermediate -- node!: RSA of 1024 bits, or another curve; TLS lets both in."""
    key = make_key()
    live.refused(BY_US, live.leaf(key=key), key, because="its key is not on P-256")


def test_key_on_p224(live, tmp_path):
    """root -- intermediate -- node!: a key on P-224, from a client on OpenSSL, since gRPC's own refuses to load it; no TLS takes it."""
    key, path = ec.generate_private_key(ec.SECP224R1()), tmp_path / "client.pem"
    path.write_bytes(private_pem(key) + to_pem(live.leaf(key=key), live.intermediate_der))
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        with old_tls_proxy(live.port, path, version) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(METHOD)(b"", timeout=10)
            assert caught.value.code() == BY_TLS


def test_a_client_refuses_a_server_of_another_root(live, pki):
    """other root!    root -- intermediate -- server: the client pinned another."""
    other = pki.root(key=pki.other_key, issuer_key=pki.other_key, start=NOW - 9 * DAY, end=NOW + 3000 * DAY)
    live.refused(BY_TLS, live.leaf(), root=other)


def test_a_client_refuses_a_node_that_serves(pki):
    """root -- intermediate -- node: an enrolled client pretends to be the server!; purpose and subject give it away."""
    imposter = Live(pki)
    imposter.server_identity = make_identity(Signer(pki.leaf_key), imposter.leaf(), imposter.intermediate_der, imposter.root_der)
    with imposter.serving():
        imposter.refused(BY_TLS, imposter.leaf())


@contextlib.contextmanager
def old_tls_proxy(port, identity, version):
    """Takes plain HTTP/2 and carries it to the server over TLS of one version, with a sound client certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(identity)
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(plain, secure):
        """Both ways from one thread: an OpenSSL connection must not be read and written at the same time."""
        while True:
            ready = [secure] if secure.pending() else select.select([plain, secure], [], [])[0]
            for source, target in ((plain, secure), (secure, plain)):
                if source in ready:
                    data = source.recv(65536)
                    if not data:
                        return
                    target.sendall(data)

    def work():
        with contextlib.suppress(OSError):
            plain, _ = listener.accept()
            with (
                plain,
                socket.create_connection(("127.0.0.1", port)) as carrier,
                context.wrap_socket(carrier, server_hostname=TARGET) as secure,
            ):
                pump(plain, secure)

    threading.Thread(target=work, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()


@pytest.mark.parametrize(("version", "answered"), [(ssl.TLSVersion.TLSv1_2, False), (ssl.TLSVersion.TLSv1_3, True)])
def test_only_tls_1_3_is_answered(live, pki, tmp_path, version, answered):
    """root -- intermediate -- node: sound, over TLS 1.2!, which gRPC accepts and the handler refuses; over 1.3 the same way passes."""
    path = tmp_path / "client.pem"
    path.write_bytes(private_pem(pki.leaf_key) + to_pem(live.leaf(), live.intermediate_der))
    with old_tls_proxy(live.port, path, version) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(METHOD)
        if answered:
            assert call(b"", timeout=10) == b"client-7"
            return
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=10)
    assert (caught.value.code(), "TLSv1.2, not TLS 1.3" in caught.value.details()) == (BY_US, True)


def serial_shown(port):
    """Serial number of the certificate that new handshakes see."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.1", port)) as plain, context.wrap_socket(plain, server_hostname=TARGET) as secure:
        return x509.load_der_x509_certificate(secure.getpeercert(binary_form=True)).serial_number


def test_a_renewed_server_is_seen_at_once_and_old_channels_go_on(pki):
    live = Live(pki)
    client = make_identity(Signer(pki.leaf_key), live.leaf(), live.intermediate_der, live.root_der)
    with live.serving(), secure_channel(f"127.0.0.1:{live.port}", client, "main") as channel:
        call, before = channel.unary_unary(METHOD), live.server_identity.serial_number
        assert call(b"", timeout=10) == b"client-7"
        assert serial_shown(live.port) == before
        live.server_identity = live.new_server_identity()
        assert serial_shown(live.port) == live.server_identity.serial_number != before
        assert call(b"", timeout=10) == b"client-7"
        assert live.call(live.leaf()) == b"client-7"


def test_a_channel_that_reconnects_by_itself_never_reaches_another_server(pki):
    """The port changes hands: another server of the same federation, sound in all else. gRPC reconnects; TLS ends every try."""
    main, other = Live(pki), Live(pki)
    other.root_der, other.intermediate_der, other.server_key = main.root_der, main.intermediate_der, ec.generate_private_key(ec.SECP256R1())
    other.server_identity = other.new_server_identity("other")
    client = make_identity(Signer(pki.leaf_key), main.leaf(), main.intermediate_der, main.root_der)
    with contextlib.ExitStack() as stack:
        with main.serving():
            channel = stack.enter_context(secure_channel(f"127.0.0.1:{main.port}", client, "main"))
            call = channel.unary_unary(METHOD)
            assert call(b"update", timeout=10) == b"client-7"
        with other.serving(main.port):
            for patient in (False, False, True):
                with pytest.raises(grpc.RpcError) as caught:
                    call(b"secret update", timeout=2, wait_for_ready=patient)
                assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
            with secure_channel(f"127.0.0.1:{main.port}", client, "other") as asked_for:
                assert asked_for.unary_unary(METHOD)(b"", timeout=10) == b"client-7"
            assert len(other.seen) == 1
        with main.serving(main.port):
            assert call(b"update", timeout=20, wait_for_ready=True) == b"client-7"


def test_a_subject_that_does_not_go_with_the_name_is_no_identity(pki):
    """TLS goes by the subject, everything else by the URI: a certificate in which they differ is nobody's."""
    live = Live(pki)
    with pytest.raises(CertificateError, match="its subject is not 'fedsec server backup'"):
        live.new_server_identity("main", uri=f"spiffe://{pki.federation}/server/backup")
    with pytest.raises(CertificateError, match="its subject is not 'fedsec node'"):
        pki.verify(pki.leaf(subject=server_target("main")))


@pytest.mark.parametrize("name", ["main.", "-main", "", "a" * 51, "Main", "ma in", "main\n"])
def test_a_name_that_tls_would_read_otherwise_is_no_servers(name):
    with pytest.raises(CertificateError, match="server name"):
        server_target(name)


def test_a_folder_that_cannot_be_read_leaves_the_last_identity_in_use(pki):
    live = Live(pki)
    with live.serving():
        live.broken = True
        assert live.call(live.leaf()) == b"client-7"
    with pytest.raises(StorageError):
        server_credentials(live.load)


class Context:
    def __init__(self, **values):
        self.values = values

    def auth_context(self):
        return self.values


@pytest.mark.parametrize("values", [{}, {"ssl_tls_version": []}, {"ssl_tls_version": [b"TLSv1.2"]}, {"ssl_tls_version": [b"TLSv1.3", b"TLSv1.2"]}, {"ssl_tls_version": [b"TLSv1.30"]}])  # fmt: skip
def test_a_connection_that_does_not_say_tls_1_3_is_refused(values):
    with pytest.raises(CertificateError):
        check_tls13(Context(**values))


@pytest.mark.parametrize("values", [{}, {"x509_pem_cert": []}, {"x509_pem_cert": [b"a", b"b"]}, {"x509_pem_cert": [b"\xff"]}, {"x509_pem_cert": [b"no PEM"]}])  # fmt: skip
def test_a_connection_without_one_readable_certificate_is_refused(values):
    with pytest.raises(CertificateError):
        peer_certificate(Context(**values))
