"""What the authority issues is what the verifier accepts, and only while the authority itself is valid."""

import ssl
import stat
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from fedsec.errors import CertificateError, StorageError
from fedsec.identity.ca import INTERMEDIATE_LIFETIME, ROOT_LIFETIME, CertificateAuthority
from fedsec.identity.names import Role
from fedsec.identity.verify import verify_peer
from fedsec.signing import Signer, verify_signature

NOW = datetime(2030, 5, 1, 12, 0, 0, 250_000, tzinfo=UTC)
START = datetime(2030, 5, 1, 11, 55, 0, tzinfo=UTC)
FEDERATION = "hearts.example"
KEY = Signer.generate()


@pytest.fixture(scope="module")
def authority():
    return CertificateAuthority.create(FEDERATION, now=NOW)


def verify(authority, issued, role, now=NOW):
    return verify_peer(issued.certificate_der, intermediate_der=authority.intermediate_der, root_der=authority.root_der, federation=FEDERATION, role=role, now=now)  # fmt: skip


def test_an_issued_node_is_verified(authority):
    issued = authority.issue_node("client-7", KEY.public_key, site="basel", now=NOW)
    peer = verify(authority, issued, Role.NODE)
    assert (
        (peer.name.uri, peer.public_key)
        == (issued.uri, KEY.public_key)
        == ("spiffe://hearts.example/site/basel/node/client-7", KEY.public_key)
    )
    assert (peer.serial_number, peer.not_after, peer.fingerprint) == (issued.serial_number, issued.not_after, issued.fingerprint)


def test_an_issued_server_is_verified(authority):
    peer = verify(authority, authority.issue_server("main", KEY.public_key, now=NOW), Role.SERVER)
    assert (peer.name.role, peer.name.name, peer.not_after) == (Role.SERVER, "main", datetime(2030, 5, 8, 12, 0, 0, tzinfo=UTC))


def test_an_issued_administrator_is_verified_for_twelve_hours(authority):
    issued = authority.issue_admin("ada", KEY.public_key, now=NOW)
    peer = verify(authority, issued, Role.ADMIN)
    assert (peer.name.role, peer.name.name, peer.not_after) == (Role.ADMIN, "ada", datetime(2030, 5, 2, 0, 0, 0, tzinfo=UTC))
    assert authority.issue(Role.ADMIN, None, "ada", KEY.public_key, now=NOW).uri == issued.uri
    for role in (Role.NODE, Role.SERVER):
        with pytest.raises(CertificateError):
            verify(authority, issued, role)


def test_form_of_a_node_certificate(authority):
    certificate = x509.load_der_x509_certificate(authority.issue_node("a", KEY.public_key, site="s", now=NOW).certificate_der)
    assert certificate.not_valid_before_utc == START
    assert certificate.not_valid_after_utc == START + timedelta(hours=72, minutes=5)
    assert certificate.extensions.get_extension_for_class(x509.KeyUsage).critical
    assert list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert len(list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)) == 1
    assert "a" not in {attribute.value for attribute in certificate.subject}


def test_form_of_the_issuers(authority):
    root, intermediate = (x509.load_der_x509_certificate(der) for der in (authority.root_der, authority.intermediate_der))
    assert root.not_valid_after_utc == datetime(2030, 5, 1, 12, tzinfo=UTC) + ROOT_LIFETIME
    assert intermediate.not_valid_after_utc == datetime(2030, 5, 1, 12, tzinfo=UTC) + INTERMEDIATE_LIFETIME
    names = intermediate.extensions.get_extension_for_class(x509.NameConstraints)
    assert names.critical
    assert names.value.permitted_subtrees == [x509.UniformResourceIdentifier(FEDERATION)]


def tls_context(folder, authority, signer, certificate_der, *, server):
    """OpenSSL with our root, key and chain; the peer must show a certificate for its side."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=ssl.DER_cert_to_PEM_cert(authority.root_der))
    chain = ssl.DER_cert_to_PEM_cert(certificate_der) + ssl.DER_cert_to_PEM_cert(authority.intermediate_der)
    path = folder / f"{signer.public_key.hex()}.pem"
    path.write_text(signer.to_pem().decode() + chain)
    context.load_cert_chain(path)
    return context


def shake_hands(client_context, server_context):
    """A TLS handshake in memory; raises what either side raises."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                pass
    return client, server


def test_tls_accepts_the_chain_and_each_side_only_in_its_role(tmp_path):
    """OpenSSL, written against the same RFC by others, agrees: with the name constraint, and on who is client and who server."""
    now = datetime.now(tz=UTC)
    authority, node, server = CertificateAuthority.create(FEDERATION, now=now), Signer.generate(), Signer.generate()
    node_der = authority.issue_node("client-7", node.public_key, site="basel", now=now).certificate_der
    server_der = authority.issue_server("main", server.public_key, now=now).certificate_der
    connecting = tls_context(tmp_path, authority, node, node_der, server=False)
    serving = tls_context(tmp_path, authority, server, server_der, server=True)
    client_side, server_side = shake_hands(connecting, serving)
    assert server_side.getpeercert()["subjectAltName"] == (("URI", "spiffe://hearts.example/site/basel/node/client-7"),)
    assert client_side.getpeercert()["subjectAltName"] == (("URI", "spiffe://hearts.example/server/main"),)
    with pytest.raises(ssl.SSLError, match="purpose"):
        shake_hands(connecting, tls_context(tmp_path, authority, node, node_der, server=True))
    with pytest.raises(ssl.SSLError, match="purpose"):
        shake_hands(tls_context(tmp_path, authority, server, server_der, server=False), serving)


def test_serial_numbers_are_random(authority):
    issued = {authority.issue_node("a", KEY.public_key, site="s", now=NOW).serial_number for _ in range(20)}
    assert len(issued) == 20
    assert max(issued) > 1 << 120


@pytest.mark.parametrize(
    "key",
    [b"", bytes(33), b"\x02" + b"\xff" * 32, b"\x04" + bytes(64), KEY.public_key[:-1]],
    ids=["empty", "zeros", "no-point", "uncompressed", "short"],
)
def test_a_bad_key_gets_no_certificate(authority, key):
    with pytest.raises(CertificateError, match="no certificate for a public key"):
        authority.issue_node("a", key, site="s", now=NOW)


def test_a_bad_name_gets_no_certificate(authority):
    for make in (lambda: authority.issue_node("A", KEY.public_key, site="s", now=NOW), lambda: authority.issue_node("a", KEY.public_key, site="../s", now=NOW),
                 lambda: authority.issue_server("", KEY.public_key, now=NOW), lambda: CertificateAuthority.create("Hearts", now=NOW)):  # fmt: skip
        with pytest.raises(CertificateError):
            make()


def test_an_invalid_intermediate_issues_nothing(authority):
    for now in (NOW - timedelta(minutes=6), NOW + INTERMEDIATE_LIFETIME):
        with pytest.raises(CertificateError, match="issues nothing"):
            authority.issue_node("a", KEY.public_key, site="s", now=now)


def test_no_leaf_outlives_the_intermediate(authority):
    late = authority.intermediate_not_after - timedelta(hours=2)
    issued = authority.issue_node("a", KEY.public_key, site="s", now=late)
    assert issued.not_after == authority.intermediate_not_after
    verify(authority, issued, Role.NODE, now=late)


def test_a_new_intermediate_keeps_root_and_keys(authority):
    later = NOW + timedelta(days=360)
    renewed = authority.with_new_intermediate(now=later)
    assert (renewed.root_der, renewed.signer.public_key, renewed.federation) == (
        authority.root_der,
        authority.signer.public_key,
        FEDERATION,
    )
    assert renewed.intermediate_not_after == later.replace(microsecond=0) + INTERMEDIATE_LIFETIME
    verify(renewed, authority.issue_node("a", KEY.public_key, site="s", now=later), Role.NODE, now=later)


def test_a_new_intermediate_does_not_outlive_the_root(authority):
    later = NOW + ROOT_LIFETIME - timedelta(days=30)
    assert authority.with_new_intermediate(now=later).intermediate_not_after == NOW.replace(microsecond=0) + ROOT_LIFETIME
    with pytest.raises(CertificateError, match="root is not valid now"):
        authority.with_new_intermediate(now=NOW + ROOT_LIFETIME)


def test_save_and_load(authority, tmp_path):
    authority.save(tmp_path)
    for name in ("root-key.pem", "intermediate-key.pem"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    loaded = CertificateAuthority.load(tmp_path)
    assert (loaded.root_der, loaded.intermediate_der) == (authority.root_der, authority.intermediate_der)
    verify(authority, loaded.issue_node("a", KEY.public_key, site="s", now=NOW), Role.NODE)
    signature = loaded.signer.sign("fedsec/identity/v1/roster", b"x")
    verify_signature(authority.signer.public_key, "fedsec/identity/v1/roster", b"x", signature)


def test_the_root_may_be_elsewhere(authority, tmp_path):
    authority.save(tmp_path)
    (tmp_path / "root-key.pem").unlink()
    loaded = CertificateAuthority.load(tmp_path)
    verify(authority, loaded.issue_node("a", KEY.public_key, site="s", now=NOW), Role.NODE)
    with pytest.raises(CertificateError, match="root's key is not here"):
        loaded.with_new_intermediate(now=NOW)


@pytest.mark.parametrize("name", ["intermediate-key.pem", "root.der", "intermediate.der"])
def test_a_missing_or_damaged_file_is_refused(authority, tmp_path, name):
    authority.save(tmp_path)
    (tmp_path / name).write_bytes(b"nonsense")
    with pytest.raises(StorageError):
        CertificateAuthority.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(StorageError):
        CertificateAuthority.load(tmp_path)


@pytest.mark.parametrize("name", ["intermediate-key.pem", "root-key.pem", "root.der", "intermediate.der"])
def test_files_of_two_authorities_are_refused(authority, tmp_path, name):
    authority.save(tmp_path)
    (tmp_path / "other").mkdir()
    CertificateAuthority.create(FEDERATION, now=NOW).save(tmp_path / "other", durable=False)
    (tmp_path / "other" / name).rename(tmp_path / name)
    with pytest.raises(StorageError, match="damaged"):
        CertificateAuthority.load(tmp_path)


def test_nothing_secret_is_shown(authority):
    assert repr(authority) == "CertificateAuthority(hearts.example)"
