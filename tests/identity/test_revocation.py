"""Revocation lists: what the CA makes is read, and nothing else is."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.errors import CertificateError
from fedsec.identity.ca import INTERMEDIATE_LIFETIME, CertificateAuthority
from fedsec.identity.revocation import CRL_LIFETIME, MAX_CRL_BYTES, Reason, Revocation, RevokedError, make_crl, verify_crl
from fedsec.signing import Signer

NOW = datetime(2030, 5, 1, 12, 0, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)
FEDERATION = "hearts.example"
AUTHORITY = CertificateAuthority.create(FEDERATION, now=NOW)
REVOKED = [Revocation(77, NOW, Reason.KEY_COMPROMISE), Revocation(5, NOW - SECOND), Revocation(1 << 158, NOW, Reason.CESSATION)]


def verify(der, **changes):
    sound = {"intermediate_der": AUTHORITY.intermediate_der, "root_der": AUTHORITY.root_der, "federation": FEDERATION, "now": NOW}
    return verify_crl(der, **{**sound, **changes})


def make(number=3, revoked=REVOKED, now=NOW, authority=AUTHORITY):
    return make_crl(authority, revoked, number=number, now=now)


def craft(*, issuer="fedsec intermediate", number=3, critical=(), extensions=(), entries=(), signer=AUTHORITY.signer, last=NOW, end=NOW + CRL_LIFETIME, algorithm=None, key=None):  # fmt: skip
    """A list with one thing changed."""
    builder = x509.CertificateRevocationListBuilder().issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]))
    builder = builder.last_update(last).next_update(end)
    if number is not None:
        builder = builder.add_extension(x509.CRLNumber(number), critical=False)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    for extension in critical:
        builder = builder.add_extension(extension, critical=True)
    for entry in entries:
        builder = builder.add_revoked_certificate(entry)
    if key is not None:
        return builder.sign(key, algorithm or hashes.SHA256()).public_bytes(Encoding.DER)
    return signer.sign_revocations(builder).public_bytes(Encoding.DER)


def entry(serial=9, *extensions, critical=False):
    item = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW)
    for extension in extensions:
        item = item.add_extension(extension, critical=critical)
    return item.build()


DER = make()


def test_a_list_is_read_back():
    found = verify(make())
    assert (found.number, found.this_update, found.next_update) == (3, NOW, NOW + CRL_LIFETIME)
    assert found.serial_numbers == {5, 77, 1 << 158}
    assert verify(craft()).serial_numbers == frozenset()


def test_a_revoked_certificate_is_refused_and_no_other():
    found = verify(make())
    found.check(78)
    with pytest.raises(RevokedError, match="4D was revoked"):
        found.check(77)
    assert RevokedError.code == "revoked"


def test_other_implementations_read_reasons_and_numbers():
    crl = x509.load_der_x509_crl(make())
    assert crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 3
    reasons = {item.serial_number: [ext.value.reason.value for ext in item.extensions] for item in crl}
    assert reasons == {5: [], 77: ["keyCompromise"], 1 << 158: ["cessationOfOperation"]}


def test_a_list_is_good_in_its_period_only():
    der = make()
    for now in (NOW - timedelta(minutes=5), NOW, NOW + CRL_LIFETIME - SECOND):
        verify(der, now=now)
    with pytest.raises(CertificateError, match="ended at"):
        verify(der, now=NOW + CRL_LIFETIME)
    with pytest.raises(CertificateError, match="check the clock"):
        verify(make(now=NOW + timedelta(minutes=6)), now=NOW)
    with pytest.raises(ValueError):
        verify(der, now=NOW.replace(tzinfo=None))


def test_a_server_that_hides_newer_lists_is_refused_by_whoever_saw_one():
    with pytest.raises(CertificateError, match="number 3 was replaced by 4"):
        verify(make(), minimum_number=4)
    verify(make(), minimum_number=3)


def test_it_survives_the_renewal_of_the_intermediate_and_does_not_outlive_it():
    later = NOW + timedelta(days=300)
    renewed = AUTHORITY.with_new_intermediate(now=later)
    verify(make(now=later), intermediate_der=renewed.intermediate_der, now=later)
    with pytest.raises(CertificateError, match="intermediate: expired"):
        verify(make(now=later), now=NOW + INTERMEDIATE_LIFETIME + SECOND)


def test_another_signer_is_refused():
    """A member, the server, another CA of the same name: none is the intermediate."""
    other = CertificateAuthority.create(FEDERATION, now=NOW)
    for der in (craft(signer=Signer.generate()), make(authority=other)):
        with pytest.raises(CertificateError, match="not signed by the intermediate"):
            verify(der)
    with pytest.raises(CertificateError, match="not issued by the CA above it"):
        verify(make(authority=other), intermediate_der=other.intermediate_der)


def test_another_federation_and_another_issuers_name_are_refused():
    with pytest.raises(CertificateError, match=r"not lungs\.example"):
        verify(make(), federation="lungs.example")
    with pytest.raises(CertificateError, match="of another issuer"):
        verify(craft(issuer="somebody"))


def test_another_hash_is_refused():
    private = ec.derive_private_key(7, ec.SECP256R1())
    authority = CertificateAuthority.create(FEDERATION, now=NOW)
    assert authority.signer.public_key != Signer(private).public_key
    with pytest.raises(CertificateError, match="ECDSA and SHA-256"):
        verify(craft(key=private, algorithm=hashes.SHA512()))


@pytest.mark.parametrize(
    ("changes", "because"),
    [
        ({"number": None}, "no number"),
        ({"number": 0}, "out of range"),
        ({"number": 1 << 60}, "out of range"),
        ({"critical": [x509.DeltaCRLIndicator(1)]}, "unknown critical"),
        ({"critical": [x509.IssuingDistributionPoint(None, None, True, False, None, False, False)]}, "unknown critical"),
        ({"critical": [x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")]}, "unknown critical extension 1.2.3.4"),
        ({"entries": [entry(9, x509.CertificateIssuer([x509.DirectoryName(x509.Name([]))]), critical=True)]}, "unknown critical"),
        ({"entries": [entry(9, x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), critical=True)]}, "entry 9"),
        ({"entries": [entry(9, x509.CRLReason(x509.ReasonFlags.remove_from_crl))]}, "takes a certificate off"),
        ({"entries": [entry(9), entry(9)]}, "twice"),
        ({"last": NOW - timedelta(days=9), "end": NOW - timedelta(days=1)}, "ended"),
    ],
)
def test_a_list_that_this_reader_does_not_know_is_refused_even_signed(changes, because):
    with pytest.raises(CertificateError, match=because):
        verify(craft(**changes))


def test_unknown_extensions_that_are_not_critical_are_allowed():
    extension = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    assert verify(craft(extensions=[extension], entries=[entry(9, extension)])).serial_numbers == {9}


def test_a_list_without_an_end_is_refused():
    """``next_update`` is optional in X.509; cut out and signed again it says nothing about when it stops counting."""
    der = make(revoked=[])
    crl = x509.load_der_x509_crl(der)
    end = crl.next_update_utc.strftime("%y%m%d%H%M%SZ").encode()
    at = der.index(b"\x17\x0d" + end)
    tbs = crl.tbs_certlist_bytes
    inner = tbs[4 if tbs[1] & 0x80 and tbs[1] == 0x82 else 3 if tbs[1] == 0x81 else 2 :].replace(der[at : at + 15], b"")
    new_tbs = b"\x30" + length(len(inner)) + inner
    private = AUTHORITY.signer._private_key
    signature = private.sign(new_tbs, ec.ECDSA(hashes.SHA256()))
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")
    body = new_tbs + algorithm + b"\x03" + length(len(signature) + 1) + b"\0" + signature
    with pytest.raises(CertificateError, match="until when it counts"):
        verify(b"\x30" + length(len(body)) + body)


def length(size):
    return bytes([size]) if size < 128 else bytes([0x81, size]) if size < 256 else bytes([0x82, *size.to_bytes(2, "big")])


@pytest.mark.parametrize("data", [b"", b"\x30\x00", b"\x30\x82\xff\xff", b"-----BEGIN X509 CRL-----", AUTHORITY.intermediate_der])
def test_bytes_that_are_no_list(data):
    with pytest.raises(CertificateError):
        verify(data)


def test_a_list_that_is_too_long_is_not_parsed():
    with pytest.raises(CertificateError, match="over the limit"):
        verify(bytes(MAX_CRL_BYTES + 1))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_flipped_bit_is_refused(data):
    der = bytearray(DER)
    bit = data.draw(st.integers(0, 8 * len(der) - 1))
    der[bit // 8] ^= 1 << bit % 8
    try:
        assert verify(bytes(der)) == verify(DER)
    except CertificateError:
        pass


@pytest.mark.parametrize("changes", [{"number": 0}, {"number": 1 << 53}, {"now": NOW.replace(tzinfo=None)}])
def test_unsound_values_are_misuse_where_lists_are_made(changes):
    with pytest.raises(ValueError):
        make_crl(AUTHORITY, [], **{"number": 1, "now": NOW, **changes})
