"""Tokens: one spelling, one signer, a quarter of an hour."""

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.codec import canonical_json
from fedsec.errors import CertificateError, DecodeError, SignatureError
from fedsec.identity.names import Role
from fedsec.identity.tokens import MAX_LIFETIME, MAX_TOKEN_CHARS, TOKEN_LABEL, Token, check_address, make_token, read_token, verify_token
from fedsec.signing import Signer

NOW = datetime(2030, 5, 1, 12, 0, 0, tzinfo=UTC)
CA = Signer.generate()
SOUND = Token(
    jti=b"j" * 16, federation="hearts.example", role=Role.NODE, site="basel", name="client-7", not_after=NOW + MAX_LIFETIME,
    root_sha256=b"r" * 32, service_sha256=b"s" * 32, address="ca.hearts.example:9443",
)  # fmt: skip
TEXT = make_token(CA, SOUND)


def encode(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def craft(payload, signer=CA):
    """Whatever payload, signed by the CA."""
    return f"fedsec-token-1.{encode(payload)}.{encode(signer.sign(TOKEN_LABEL, payload))}"


def altered(**changes):
    value = json.loads(base64.urlsafe_b64decode(TEXT.split(".")[1] + "==")) | changes
    return canonical_json({key: item for key, item in value.items() if item != "leave out"})


def verify(text=TEXT, **changes):
    return verify_token(text, **{"public_key": CA.public_key, "now": NOW, **changes})


def test_a_token_is_one_printable_line_and_reads_back():
    assert TEXT.isprintable()
    assert len(TEXT.split()) == 1
    assert read_token(TEXT) == verify() == SOUND
    assert SOUND.uri == "spiffe://hearts.example/site/basel/node/client-7"


@pytest.mark.parametrize("change", [{"role": Role.SERVER, "site": None}, {"role": Role.ADMIN, "site": None}, {"address": None}])
def test_every_role_reads_back(change):
    token = replace(SOUND, **change)
    assert verify(make_token(CA, token)) == token


def test_the_secret_number_is_not_shown():
    assert "jti" not in repr(SOUND)


def test_it_ends_after_a_quarter_of_an_hour_at_most():
    verify(now=SOUND.not_after - timedelta(seconds=1))
    with pytest.raises(CertificateError, match="ended at"):
        verify(now=SOUND.not_after)
    with pytest.raises(CertificateError, match="longer than"):
        verify(now=NOW - timedelta(seconds=1))


def test_a_forged_token_is_refused():
    """Signed by a member, by another CA, under another label; a payload under another token's signature."""
    for signer in (Signer.generate(), Signer.generate()):
        with pytest.raises(SignatureError):
            verify(make_token(signer, SOUND))
    payload = TEXT.split(".")[1]
    other = f"fedsec-token-1.{payload}.{encode(CA.sign('fedsec/identity/v1/roster', base64.urlsafe_b64decode(payload + '==')))}"
    mixed = ".".join((*make_token(CA, replace(SOUND, role=Role.SERVER, site=None)).split(".")[:2], TEXT.split(".")[2]))
    for text in (other, mixed):
        with pytest.raises(SignatureError):
            verify(text)


@pytest.mark.parametrize(
    "changes",
    [
        {"jti": "leave out"}, {"alg": "none"}, {"jti": "00" * 15}, {"jti": "AA" * 16}, {"jti": 7}, {"federation": "Hearts"}, {"federation": None},
        {"role": "root"}, {"role": None}, {"role": "server"}, {"site": None}, {"site": "../x"}, {"name": ""}, {"name": "a/b"}, {"not_after": -1},
        {"not_after": 1 << 40}, {"not_after": 1.5}, {"not_after": True}, {"not_after": "2030"}, {"root_sha256": "00" * 31},
        {"service_sha256": ""}, {"address": ""}, {"address": "ca"}, {"address": "ca:0"}, {"address": "ca:65536"}, {"address": "http://ca:1"}, {"address": 7},
    ],
)  # fmt: skip
def test_a_payload_that_is_not_sound_is_refused_even_signed(changes):
    with pytest.raises(DecodeError):
        verify(craft(altered(**changes)))


def test_another_spelling_is_refused():
    head, payload, signature = TEXT.split(".")
    for text in (
        "", ".", "..", TEXT + ".", TEXT + "=", " " + TEXT, TEXT + "\n", f"{head}.{payload}", f"fedsec-token-2.{payload}.{signature}",
        f"{head}.{payload}.{signature[:-2]}", f"{head}.{payload}.", f"{head}.{payload}.\u00e9", f"{head}.{payload}!.{signature}",
        f"{head}.{encode(b'null')}.{signature}", f"{head}.{encode(b'[]')}.{signature}", "x" * (MAX_TOKEN_CHARS + 1),
        f"{head}.{payload}.{signature.replace('-', '+').replace('_', '/')}" if set("-_") & set(signature) else "",
        craft(json.dumps(json.loads(altered())).encode()),
    ):  # fmt: skip
        with pytest.raises(DecodeError):
            read_token(text)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_changed_character_is_refused(data):
    at = data.draw(st.integers(0, len(TEXT) - 1))
    char = data.draw(st.characters(codec="utf-8").filter(lambda char: char != TEXT[at]))
    with pytest.raises((DecodeError, SignatureError)):
        verify(TEXT[:at] + char + TEXT[at + 1 :])


@settings(max_examples=100)
@given(st.text(max_size=200))
def test_any_text_is_a_token_or_a_decode_error(text):
    with pytest.raises(DecodeError):
        read_token(text)


@pytest.mark.parametrize(
    "changes",
    [{"jti": b""}, {"root_sha256": b"r"}, {"not_after": NOW.replace(microsecond=1)}, {"not_after": NOW.astimezone(timezone(timedelta(hours=1)))}, {"address": "x"}],
)  # fmt: skip
def test_unsound_values_are_misuse_where_tokens_are_made(changes):
    with pytest.raises(ValueError):
        replace(SOUND, **changes)


@pytest.mark.parametrize("address", ["localhost:1", "127.0.0.1:65535", "[::1]:9443", "ca.hearts-2.example:443"])
def test_addresses(address):
    assert check_address(address) == address


@pytest.mark.parametrize("address", ["", ":1", "a:", "a:01", "a b:1", "-a:1", "a:1\n", "a:99999", "[::1]", "::1:1", "a/b:1"])
def test_what_is_no_address(address):
    with pytest.raises(ValueError):
        check_address(address)
