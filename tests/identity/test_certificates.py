"""Bad certificates, one defect each: the error must name it, and nothing else may be wrong with the chain.

Every function draws its chain from the pinned root on the left to the leaf on the right; ``!`` marks the certificate with the defect.
"""

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from fedsec.errors import CertificateError
from fedsec.identity.names import Role
from fedsec.identity.verify import BACKDATE, LIFETIMES

SECOND = timedelta(seconds=1)
CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH


def refused(because: str):
    return pytest.raises(CertificateError, match=because)


def test_a_sound_node_is_verified(pki):
    """root -- intermediate -- node: every rule holds."""
    peer = pki.verify(pki.leaf())
    assert peer.name.uri == pki.node_uri
    assert peer.public_key == pki.leaf_key.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    assert peer.not_after == pki.now + timedelta(hours=71)
    assert len(peer.fingerprint) == 32


def test_a_sound_server_is_verified(pki):
    """root -- intermediate -- server: every rule holds, and seven days are allowed."""
    peer = pki.verify(pki.leaf(Role.SERVER, end=pki.now + timedelta(days=6)), role=Role.SERVER)
    assert (peer.name.role, peer.name.name) == (Role.SERVER, "main")


def test_expired(pki):
    """root -- intermediate -- node!: its last second has passed."""
    leaf = pki.leaf(end=pki.now - SECOND)
    with refused("node certificate: expired at 2030-05-01 11:59:59 UTC"):
        pki.verify(leaf)
    pki.verify(leaf, now=pki.now - SECOND)


def test_not_yet_valid(pki):
    """root -- intermediate -- node!: its first second is to come."""
    leaf = pki.leaf(start=pki.now + SECOND)
    with refused("node certificate: not valid before 2030-05-01 12:00:01 UTC"):
        pki.verify(leaf)
    pki.verify(leaf, now=pki.now + SECOND)


def test_expired_intermediate(pki):
    """root -- intermediate! -- node: the issuer's last second has passed."""
    with refused("intermediate: expired"):
        pki.verify(pki.leaf(), intermediate_der=pki.intermediate(end=pki.now - SECOND))


def test_expired_root(pki):
    """root! -- intermediate -- node: the pinned root's last second has passed."""
    with refused("root: expired"):
        pki.verify(pki.leaf(), root_der=pki.root(end=pki.now - SECOND))


def test_wrong_ca(pki):
    """root -- intermediate    other! -- node: the right issuer name, another issuer's key."""
    with refused("node certificate: not issued by the CA above it"):
        pki.verify(pki.leaf(issuer_key=pki.other_key))


def test_wrong_issuer_name(pki):
    """root -- intermediate -- node!: the right key, another issuer's name."""
    with refused("node certificate: not issued by the CA above it"):
        pki.verify(pki.leaf(issuer="somebody"))


def test_intermediate_of_another_root(pki):
    """root    other root! -- intermediate -- node: all is sound but for the pin."""
    other = pki.intermediate(issuer_key=pki.other_key)
    with refused("intermediate: not issued by the CA above it"):
        pki.verify(pki.leaf(), intermediate_der=other)
    pki.verify(pki.leaf(), intermediate_der=other, root_der=pki.root(key=pki.other_key, issuer_key=pki.other_key))


def test_root_that_is_not_self_signed(pki):
    """somebody -- root! -- intermediate -- node: the pinned certificate is no root."""
    with refused("root: not issued by the root"):
        pki.verify(pki.leaf(), root_der=pki.root(issuer_key=pki.other_key))


def test_node_right_below_the_root(pki):
    """root -- node!: the intermediate is left out and the root handed in for it."""
    with refused("intermediate: not a CA with 0 more below it"):
        pki.verify(pki.leaf(), intermediate_der=pki.root_der)


def test_self_signed(pki):
    """node!: signed by its own key, under the issuer's name."""
    with refused("not issued by the CA above it"):
        pki.verify(pki.leaf(issuer_key=pki.leaf_key))


def test_wrong_extended_usage(pki):
    """root -- intermediate -- node!: named a node, but may act as a server."""
    with refused("extended key usage is not exactly that of a node"):
        pki.verify(pki.leaf(extensions={"eku": (x509.ExtendedKeyUsage([SERVER]), False)}))


def test_two_extended_usages(pki):
    """root -- intermediate -- node!: may act as client and as server."""
    with refused("extended key usage is not exactly that of a node"):
        pki.verify(pki.leaf(extensions={"eku": (x509.ExtendedKeyUsage([CLIENT, SERVER]), False)}))


def test_any_extended_usage(pki):
    """root -- intermediate -- node!: may act as anything."""
    with refused("extended key usage"):
        pki.verify(pki.leaf(extensions={"eku": (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]), False)}))


def test_no_extended_usage(pki):
    """root -- intermediate -- node!: says nothing, which other verifiers read as anything."""
    with refused("no ExtendedKeyUsage"):
        pki.verify(pki.leaf(extensions={"eku": None}))


def test_no_key_usage(pki):
    """root -- intermediate -- node!: no key usage."""
    with refused("no KeyUsage"):
        pki.verify(pki.leaf(extensions={"usage": None}))


def test_key_usage_that_is_not_critical(pki):
    """root -- intermediate -- node!: a key usage that others may skip."""
    with refused("KeyUsage is not critical"):
        pki.verify(pki.leaf(extensions={"usage": (pki.usage("digital_signature"), False)}))


@pytest.mark.parametrize("bits", [("key_agreement",), ("digital_signature", "key_agreement"), ("digital_signature", "key_cert_sign")])
def test_wrong_key_usage(pki, bits):
    """root -- intermediate -- node!: another key usage, or one too many."""
    with refused("key usage is .*, expected digital_signature"):
        pki.verify(pki.leaf(extensions={"usage": (pki.usage(*bits), True)}))


def test_no_name(pki):
    """root -- intermediate -- node!: no alternative names; the subject is never read."""
    with refused("no SubjectAlternativeName"):
        pki.verify(pki.leaf(subject=pki.node_uri[:64], extensions={"names": None}))


def test_two_names(pki):
    """root -- intermediate -- node!: two URIs, both of the federation."""
    with refused("2 alternative names"):
        pki.verify(pki.leaf(extensions={"names": (pki.uris(pki.node_uri, pki.node_uri + "8"), False)}))


def test_a_dns_name_beside_the_uri(pki):
    """root -- intermediate -- node!: one URI and a host name."""
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(pki.node_uri), x509.DNSName("hearts.example")])
    with refused("2 alternative names"):
        pki.verify(pki.leaf(extensions={"names": (names, False)}))


def test_a_dns_name_that_looks_like_the_uri(pki):
    """root -- intermediate -- node!: the right text in the wrong kind of name."""
    with refused("expected one URI"):
        pki.verify(pki.leaf(extensions={"names": (x509.SubjectAlternativeName([x509.DNSName(pki.node_uri)]), False)}))


@pytest.mark.parametrize(
    "uri", ["https://hearts.example/", "spiffe://hearts.example/site/basel/node/Client", "spiffe://hearts.example/node/x"]
)
def test_a_uri_that_is_no_name(pki, uri):
    """root -- intermediate -- node!: one URI, which names nobody."""
    with refused("not the name of a node, server or admin"):
        pki.verify(pki.leaf(extensions={"names": (pki.uris(uri), False)}))


def test_name_outside_the_constraint(pki):
    """root -- intermediate (hearts.example only) -- node! (lungs.example): the issuer may not say that."""
    leaf = pki.leaf(extensions={"names": (pki.uris("spiffe://lungs.example/site/basel/node/client-7"), False)})
    with refused("for the federation lungs.example, not hearts.example"):
        pki.verify(leaf)
    with refused("for the federation hearts.example, not lungs.example"):
        pki.verify(leaf, federation="lungs.example")


def test_a_sub_domain_is_another_federation(pki):
    """root -- intermediate (hearts.example only) -- node! (a.hearts.example): constraints hold for exactly one name."""
    with refused("for the federation a.hearts.example"):
        pki.verify(pki.leaf(extensions={"names": (pki.uris("spiffe://a.hearts.example/site/basel/node/client-7"), False)}))


def test_wrong_federation(pki):
    """root -- intermediate -- node, all of lungs.example!: sound, but not whom we talk to."""
    names = {"names": (pki.constraint("lungs.example"), True)}
    leaf = pki.leaf(extensions={"names": (pki.uris("spiffe://lungs.example/site/basel/node/client-7"), False)})
    with refused("for the federation lungs.example, not hearts.example"):
        pki.verify(leaf, intermediate_der=pki.intermediate(extensions=names))
    pki.verify(leaf, intermediate_der=pki.intermediate(extensions=names), federation="lungs.example")


def test_intermediate_without_a_constraint(pki):
    """root -- intermediate! -- node: may name anybody."""
    with refused("intermediate: no NameConstraints"):
        pki.verify(pki.leaf(), intermediate_der=pki.intermediate(extensions={"names": None}))


def test_constraint_that_is_not_critical(pki):
    """root -- intermediate! -- node: a constraint that others may skip."""
    with refused("NameConstraints is not critical"):
        pki.verify(pki.leaf(), intermediate_der=pki.intermediate(extensions={"names": (pki.constraint(pki.federation), False)}))


@pytest.mark.parametrize("federations", [("hearts.example", "lungs.example"), (".example",), ("",)])
def test_constraint_that_is_too_wide(pki, federations):
    """root -- intermediate! -- node: may name peers of more than one federation."""
    with refused("exactly one federation|federation .* is not"):
        pki.verify(pki.leaf(), intermediate_der=pki.intermediate(extensions={"names": (pki.constraint(*federations), True)}))


def test_constraint_that_also_excludes(pki):
    """root -- intermediate! -- node: an excluded name, which one verifier minds and another does not."""
    names = x509.NameConstraints([x509.UniformResourceIdentifier(pki.federation)], [x509.UniformResourceIdentifier("lungs.example")])
    with refused("not exactly one federation"):
        pki.verify(pki.leaf(), intermediate_der=pki.intermediate(extensions={"names": (names, True)}))


def test_constraint_of_another_kind(pki):
    """root -- intermediate! -- node: constrains host names, so URIs are free."""
    names = x509.NameConstraints([x509.DNSName(pki.federation)], None)
    with refused("exactly one federation"):
        pki.verify(pki.leaf(), intermediate_der=pki.intermediate(extensions={"names": (names, True)}))


@pytest.mark.parametrize("role", list(Role))
def test_lifetime_beyond_policy(pki, role):
    """root -- intermediate -- leaf!: one second more than the policy and the five minutes before issue."""
    end = pki.now + LIFETIMES[role]
    pki.verify(pki.leaf(role, start=pki.now - BACKDATE, end=end), role=role)
    with refused("longer than"):
        pki.verify(pki.leaf(role, start=pki.now - BACKDATE, end=end + SECOND), role=role)


def test_role_mismatch_node_as_server(pki):
    """root -- intermediate -- node: sound, but a server is asked for!."""
    with refused("extended key usage is not exactly that of a server"):
        pki.verify(pki.leaf(), role=Role.SERVER)


def test_role_mismatch_between_usage_and_name(pki):
    """root -- intermediate -- node!: a server's usage under a node's name."""
    leaf = pki.leaf(extensions={"eku": (x509.ExtendedKeyUsage([SERVER]), False)})
    with refused("server certificate: names a node"):
        pki.verify(leaf, role=Role.SERVER)


def test_server_as_node(pki):
    """root -- intermediate -- server: sound, but a node is asked for!."""
    with refused("extended key usage is not exactly that of a node"):
        pki.verify(pki.leaf(Role.SERVER))


def test_leaf_that_is_a_ca(pki):
    """root -- intermediate -- node!: might issue certificates itself."""
    with refused("a CA, not a peer"):
        pki.verify(pki.leaf(extensions={"constraints": (x509.BasicConstraints(ca=True, path_length=0), True)}))


def test_leaf_without_basic_constraints(pki):
    """root -- intermediate -- node!: does not say that it is no CA."""
    with refused("no BasicConstraints"):
        pki.verify(pki.leaf(extensions={"constraints": None}))


def test_leaf_with_name_constraints(pki):
    """root -- intermediate -- node!: has an extension that only a CA may have."""
    with refused("name constraints"):
        pki.verify(pki.leaf(extensions={"more": (pki.constraint(pki.federation), True)}))


def test_issuer_that_is_no_ca(pki):
    """root -- node -- node!: a node's certificate as the issuer of another."""
    issuer = pki.intermediate(extensions={"constraints": (x509.BasicConstraints(ca=False, path_length=None), True)})
    with refused("intermediate: not a CA with 0 more below it"):
        pki.verify(pki.leaf(), intermediate_der=issuer)


@pytest.mark.parametrize("path_length", [None, 1])
def test_intermediate_that_may_make_more_cas(pki, path_length):
    """root -- intermediate! -- node: would allow another CA below it."""
    issuer = pki.intermediate(extensions={"constraints": (x509.BasicConstraints(ca=True, path_length=path_length), True)})
    with refused("intermediate: not a CA with 0 more below it"):
        pki.verify(pki.leaf(), intermediate_der=issuer)


def test_issuer_that_may_not_sign_certificates(pki):
    """root -- intermediate! -- node: a CA by its constraints, not by its key usage."""
    with refused("intermediate: key usage is digital_signature"):
        pki.verify(pki.leaf(), intermediate_der=pki.intermediate(extensions={"usage": (pki.usage("digital_signature"), True)}))


@pytest.mark.parametrize(
    "make_key",
    [lambda: ec.generate_private_key(ec.SECP384R1()), lambda: ec.generate_private_key(ec.SECP256K1()), lambda: ec.generate_private_key(ec.SECP224R1()),
     lambda: rsa.generate_private_key(65537, 1024), ed25519.Ed25519PrivateKey.generate],
    ids=["P-384", "secp256k1", "P-224", "RSA", "Ed25519"],
)  # fmt: skip
def test_key_that_is_not_on_p256(pki, make_key):
    """root -- intermediate -- node!: its key is of another kind."""
    with refused("node certificate: its key is not on P-256"):
        pki.verify(pki.leaf(key=make_key()))


def test_issuer_whose_key_is_not_on_p256(pki):
    """root -- intermediate! -- node: its key is on P-384."""
    key = ec.generate_private_key(ec.SECP384R1())
    with refused("intermediate: its key is not on P-256"):
        pki.verify(pki.leaf(issuer_key=key), intermediate_der=pki.intermediate(key=key))


@pytest.mark.parametrize("algorithm", [hashes.SHA384(), hashes.SHA224(), hashes.SHA512()])
def test_signature_with_another_hash(pki, algorithm):
    """root -- intermediate -- node!: signed with another hash than SHA-256."""
    with refused("node certificate: not signed with ECDSA and SHA-256"):
        pki.verify(pki.leaf(algorithm=algorithm))


def test_unknown_critical_extension(pki):
    """root -- intermediate -- node!: must not be accepted by who does not know 1.2.3.4."""
    extension = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    with refused("unknown critical extension 1.2.3.4"):
        pki.verify(pki.leaf(extensions={"more": (extension, True)}))
    pki.verify(pki.leaf(extensions={"more": (extension, False)}))


def test_unknown_critical_extension_of_an_issuer(pki):
    """root -- intermediate! -- node: the same, one higher."""
    extension = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    with refused("intermediate: unknown critical extension"):
        pki.verify(pki.leaf(), intermediate_der=pki.intermediate(extensions={"more": (extension, True)}))


SERIAL = pytest.mark.filterwarnings("ignore:Parsed a serial number")


def leaf_whose_signature_ends_in_zero_bits(pki):
    """The hardest one to protect: the last bits could be declared unused."""
    return next(leaf for leaf in iter(pki.leaf, None) if leaf[-1] & 0x0F == 0)


def test_unused_bits_in_a_signature(pki):
    """root -- intermediate -- node!: the same signature, said to be one bit shorter."""
    leaf = leaf_whose_signature_ends_in_zero_bits(pki)
    place = len(leaf) - len(x509.load_der_x509_certificate(leaf).signature) - 1
    with refused("not in the one encoding of its signature"):
        pki.verify(leaf[:place] + b"\x01" + leaf[place + 1 :])


@SERIAL
def test_serial_number_that_is_not_positive(pki):
    """root -- intermediate -- node!: a serial number below zero."""
    leaf = pki.leaf()
    serial = x509.load_der_x509_certificate(leaf).serial_number.to_bytes(20, "big")
    with refused("serial number is not positive"):
        pki.verify(leaf.replace(serial, bytes([serial[0] | 0x80]) + serial[1:]))


@SERIAL
def test_no_byte_of_a_leaf_may_change(pki):
    """root -- intermediate -- node!: one byte is another, at every place in turn."""
    leaf = leaf_whose_signature_ends_in_zero_bits(pki)
    pki.verify(leaf)
    for index in range(len(leaf)):
        for mask in (0x01, 0x02, 0x10, 0x80):
            with pytest.raises(CertificateError):
                pki.verify(leaf[:index] + bytes([leaf[index] ^ mask]) + leaf[index + 1 :])


@SERIAL
def test_no_byte_of_an_intermediate_may_change(pki):
    """root -- intermediate! -- node: one byte is another, at every place in turn."""
    leaf, issuer = pki.leaf(), pki.intermediate_der
    for index in range(len(issuer)):
        with pytest.raises(CertificateError):
            pki.verify(leaf, intermediate_der=issuer[:index] + bytes([issuer[index] ^ 0x04]) + issuer[index + 1 :])


def test_bytes_that_are_no_certificate(pki):
    """root -- intermediate -- node!: cut short, prolonged, empty, PEM."""
    leaf = pki.leaf()
    pem = x509.load_der_x509_certificate(leaf).public_bytes(Encoding.PEM)
    for data in (b"", leaf[:-1], leaf + b"\0", leaf + leaf, pem, b"\x30\x00", leaf[: len(leaf) // 2]):
        with refused("not a certificate that can be read"):
            pki.verify(data)


def test_time_without_a_zone_is_misuse(pki):
    with pytest.raises(ValueError, match="time zone"):
        pki.verify(pki.leaf(), now=pki.now.replace(tzinfo=None))
