"""Signatures: one key, one label, one message, one encoding; everything else is refused."""

import hashlib
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec import signing
from fedsec.errors import SignatureError, StorageError
from fedsec.signing import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, Signer, VerificationCache, verify_signature

ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
FIELD = 2**256 - 2**224 + 2**192 + 2**96 - 1
LABEL = "fedsec/test/v1/purpose"
LABELS = st.from_regex(r"fedsec/[a-z0-9-]{1,9}/v[0-9]{1,3}/[a-z0-9-]{1,9}", fullmatch=True)
SIGNER = Signer.generate()
BAD_LABELS = ["", "fedsec", "fedsec/a/v1", "fedsec/a/v1/", "fedsec/a/1/b", "fedsec/A/v1/b", "fedsec/a/v1/b/c", "other/a/v1/b", " fedsec/a/v1/b",
              "fedsec/a/v1/b\n", "fedsec/a/v1/b\0", "fedsec/a/v/b", "fedsec/\u00e4/v1/b", "fedsec/a/v\u0661/b", "\ud800"]  # fmt: skip


def numbers(r: int, s: int) -> bytes:
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


@settings(deadline=None)
@given(label=LABELS, message=st.binary(max_size=200))
def test_what_is_signed_is_verified(label, message):
    signature = SIGNER.sign(label, message)
    assert len(signature) == SIGNATURE_BYTES
    assert int.from_bytes(signature[32:], "big") <= ORDER // 2
    verify_signature(SIGNER.public_key, label, message, signature)


def test_what_is_signed_is_label_nul_message():
    """Checked with the library alone, so that another implementation can verify us."""
    signature = SIGNER.sign(LABEL, b"message")
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), SIGNER.public_key)
    der = signing.encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
    key.verify(der, b"fedsec/test/v1/purpose\0message", ec.ECDSA(hashes.SHA256()))


def test_a_known_signature_is_verified():
    """Made once with the private key 1: what was signed must stay readable."""
    base_point = bytes.fromhex("036b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296")
    assert Signer(ec.derive_private_key(1, ec.SECP256R1())).public_key == base_point
    signature = bytes.fromhex(
        "ce43431779517f8613d641e62731fa67e5a10d646b6f13026017f3a14094dbb67f32732351d1ecbcb8fd8ca86881c3ebe34c01e914414788058072a74a417ce8"
    )
    verify_signature(base_point, LABEL, b"message", signature)


def test_every_signature_has_a_low_s():
    """About half of the library's have a high one, so that 64 in a row show the normalisation."""
    for _ in range(64):
        verify_signature(SIGNER.public_key, LABEL, b"", SIGNER.sign(LABEL, b""))


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_flipped_bit_anywhere_is_refused(data):
    parts = [SIGNER.public_key, b"a message", SIGNER.sign(LABEL, b"a message")]
    which = data.draw(st.integers(0, 2))
    bit = data.draw(st.integers(0, 8 * len(parts[which]) - 1))
    changed = bytearray(parts[which])
    changed[bit // 8] ^= 1 << bit % 8
    parts[which] = bytes(changed)
    with pytest.raises(SignatureError):
        verify_signature(parts[0], LABEL, parts[1], parts[2])


def test_another_label_key_or_message_is_refused():
    signature = SIGNER.sign(LABEL, b"message")
    for key, label, message in (
        (Signer.generate().public_key, LABEL, b"message"),
        (SIGNER.public_key, LABEL + "s", b"message"),
        (SIGNER.public_key, "fedsec/test/v2/purpose", b"message"),
        (SIGNER.public_key, LABEL, b"message "),
        (SIGNER.public_key, LABEL, b""),
    ):
        with pytest.raises(SignatureError):
            verify_signature(key, label, message, signature)


def test_text_cannot_move_between_label_and_message():
    with pytest.raises(SignatureError):
        verify_signature(SIGNER.public_key, LABEL + "-x", b"", SIGNER.sign(LABEL, b"-x"))


def test_the_twin_with_a_high_s_is_refused():
    signature = SIGNER.sign(LABEL, b"message")
    twin = numbers(int.from_bytes(signature[:32], "big"), ORDER - int.from_bytes(signature[32:], "big"))
    with pytest.raises(SignatureError, match="not canonical"):
        verify_signature(SIGNER.public_key, LABEL, b"message", twin)


@pytest.mark.parametrize("value", [0, ORDER, ORDER + 1, 2**256 - 1])
def test_numbers_out_of_range_are_refused(value):
    for signature in (numbers(value, 1), numbers(1, value)):
        with pytest.raises(SignatureError, match="not canonical"):
            verify_signature(SIGNER.public_key, LABEL, b"message", signature)


def test_other_lengths_and_encodings_of_a_signature_are_refused():
    signature = SIGNER.sign(LABEL, b"m")
    der = signing.encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
    for bad in (b"", signature[:-1], signature + b"\0", der, signature * 2):
        with pytest.raises(SignatureError, match="expected 64"):
            verify_signature(SIGNER.public_key, LABEL, b"m", bad)


def test_malformed_keys_are_refused():
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), SIGNER.public_key)
    uncompressed = key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    x_over_the_field = b"\x02" + (FIELD + 5).to_bytes(32, "big")  # 5 is the x of a point, and this is its second spelling
    not_on_curve = next(b"\x02" + x.to_bytes(32, "big") for x in range(1, 99) if not is_square((x**3 - 3 * x + B) % FIELD))
    signature = SIGNER.sign(LABEL, b"m")
    for bad in (
        b"",
        b"\0",
        bytes(33),
        uncompressed,
        uncompressed[:33],
        x_over_the_field,
        not_on_curve,
        b"\x05" + SIGNER.public_key[1:],
        b"\x02" + b"\xff" * 32,
    ):
        with pytest.raises(SignatureError, match="public key"):
            verify_signature(bad, LABEL, b"m", signature)


B = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B


def is_square(value: int) -> bool:
    return pow(value, (FIELD - 1) // 2, FIELD) == 1


@pytest.mark.parametrize("label", BAD_LABELS)
def test_bad_labels_are_misuse(label):
    with pytest.raises(ValueError):
        SIGNER.sign(label, b"")
    with pytest.raises(ValueError):
        verify_signature(SIGNER.public_key, label, b"", bytes(64))
    with pytest.raises(ValueError):
        VerificationCache()(SIGNER.public_key, label, b"", bytes(64))


@given(
    label=LABELS,
    context=st.sampled_from([b"TLS 1.3, server CertificateVerify", b"TLS 1.3, client CertificateVerify"]),
    hash_=st.binary(min_size=32, max_size=48),
)
def test_no_tls_signature_stands_under_a_label(label, context, hash_):
    """RFC 8446 section 4.4.3: 64 spaces, the context, a zero byte, the transcript's hash."""
    assert not (b" " * 64 + context + b"\0" + hash_).startswith(label.encode())


@given(label=LABELS, time=st.datetimes(timezones=st.just(UTC)))
def test_no_time_stamp_stands_under_a_label(label, time):
    """Flower signs the ISO time of a request with a node's key."""
    assert not time.isoformat().encode("ascii").startswith(label.encode())
    assert not datetime.now(tz=UTC).isoformat().encode("ascii").startswith(b"f")


def test_a_signature_of_flower_or_tls_is_none_of_ours():
    private = ec.generate_private_key(ec.SECP256R1())
    signer = Signer(private)
    for content in (b" " * 64 + b"TLS 1.3, client CertificateVerify\0" + bytes(32), b"2030-05-01T12:00:00+00:00"):
        r, s = decode_dss_signature(private.sign(content, ec.ECDSA(hashes.SHA256())))
        for message in (content, b""):
            with pytest.raises(SignatureError):
                verify_signature(signer.public_key, LABEL, message, numbers(r, min(s, ORDER - s)))


def test_no_function_signs_a_digest():
    """A digest handed in is signed as a message, which is another thing."""
    private = ec.derive_private_key(7, ec.SECP256R1())
    digest = hashlib.sha256(b"other protocol").digest()
    r, s = decode_dss_signature(private.sign(digest, ec.ECDSA(Prehashed(hashes.SHA256()))))
    with pytest.raises(SignatureError):
        verify_signature(Signer(private).public_key, LABEL, b"other protocol", numbers(r, min(s, ORDER - s)))
    assert {name for name in vars(Signer) if "sign" in name} == {"sign", "sign_certificate", "sign_request", "sign_revocations"}


def test_other_curves_are_refused():
    for curve in (ec.SECP384R1(), ec.SECP256K1()):
        with pytest.raises(ValueError, match="expected P-256"):
            Signer(ec.generate_private_key(curve))


def test_keys_are_saved_and_read_back():
    again = Signer.from_pem(SIGNER.to_pem())
    assert again.public_key == SIGNER.public_key
    assert len(again.public_key) == PUBLIC_KEY_BYTES
    verify_signature(SIGNER.public_key, LABEL, b"m", again.sign(LABEL, b"m"))


def test_damaged_or_other_key_files_are_refused():
    encrypted = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    )
    others = [key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
              for key in (ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate())]  # fmt: skip
    pem = SIGNER.to_pem()
    for bad in (b"", b"nonsense", pem[:80], pem.replace(b"A", b"B", 3), encrypted, *others):
        with pytest.raises(StorageError) as caught:
            Signer.from_pem(bad)
        assert "BEGIN" not in str(caught.value)


def test_repr_shows_the_public_key_only():
    private = ec.derive_private_key(0xABCDEF0123456789, ec.SECP256R1())
    assert repr(Signer(private)) == f"Signer({Signer(private).public_key.hex()})"
    assert "abcdef0123456789" not in repr(Signer(private))


def test_the_cache_verifies_a_signature_once(monkeypatch):
    calls = []
    monkeypatch.setattr(signing, "verify_signature", lambda *arguments: calls.append(arguments))
    cache = VerificationCache()
    for _ in range(5):
        cache(SIGNER.public_key, LABEL, b"m", bytes(64))
    assert (len(calls), cache.hits, cache.misses) == (1, 4, 1)


def test_the_cache_remembers_no_failure():
    cache = VerificationCache()
    good = SIGNER.sign(LABEL, b"m")
    cache(SIGNER.public_key, LABEL, b"m", good)
    for _ in range(2):
        with pytest.raises(SignatureError):
            cache(SIGNER.public_key, LABEL, b"x", good)
    assert (cache.hits, cache.misses) == (0, 3)


def test_the_cache_keeps_its_parts_apart():
    """Bytes that move between message and signature, or a key and another's signature, do not hit."""
    cache = VerificationCache()
    good = SIGNER.sign(LABEL, b"ms")
    cache(SIGNER.public_key, LABEL, b"ms", good)
    for key, label, message, signature in (
        (SIGNER.public_key, LABEL, b"m", b"s" + good),
        (SIGNER.public_key, LABEL + "m", b"s", good),
        (Signer.generate().public_key, LABEL, b"ms", good),
        (SIGNER.public_key, LABEL, b"ms" + good[:1], good[1:]),
    ):
        with pytest.raises(SignatureError):
            cache(key, label, message, signature)


def test_the_cache_is_bounded_and_forgets_the_oldest(monkeypatch):
    monkeypatch.setattr(signing, "verify_signature", lambda *_: None)
    cache = VerificationCache(max_entries=3)
    for index in range(10):
        cache(SIGNER.public_key, LABEL, b"%d" % index, bytes(64))
    assert len(cache._verified) == len(cache._order) == 3
    cache(SIGNER.public_key, LABEL, b"9", bytes(64))
    assert cache.hits == 1
    cache(SIGNER.public_key, LABEL, b"6", bytes(64))
    assert cache.hits == 1
    with pytest.raises(ValueError):
        VerificationCache(max_entries=0)
