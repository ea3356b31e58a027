"""A revocation list on disk: what counts, and what no longer does, whoever put it there."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from fedsec.errors import CertificateError, StorageError
from fedsec.identity.ca import CertificateAuthority
from fedsec.identity.crl_file import CrlFile, CrlFloor, load_verified_crl, read_crl_floor
from fedsec.identity.revocation import CRL_LIFETIME, Revocation, RevokedError, make_crl

NOW = datetime(2030, 5, 1, 12, 0, 0, tzinfo=UTC)
AUTHORITY, OTHER = (CertificateAuthority.create("hearts.example", now=NOW) for _ in range(2))
CHAIN = {"intermediate_der": AUTHORITY.intermediate_der, "root_der": AUTHORITY.root_der, "federation": "hearts.example"}


def crl(number, *serials, authority=AUTHORITY, now=NOW):
    return make_crl(authority, [Revocation(serial, NOW) for serial in serials], number=number, now=now)


@pytest.fixture
def kept(tmp_path):
    return CrlFile(path=tmp_path / "crl.der", floor_path=tmp_path / "crl-floor.json", **CHAIN)


def load(kept, *, now=NOW):
    return load_verified_crl(kept.path, kept.floor_path, **CHAIN, now=now)


def test_what_was_taken_is_read_back_and_refuses_the_revoked(kept):
    assert kept.take(crl(3, 77), now=NOW) == kept.load(now=NOW) == load(kept)
    with pytest.raises(RevokedError):
        load(kept).check(77)
    load(kept).check(78)


def test_an_older_list_is_refused_and_the_newer_one_stays(kept):
    old, new = crl(3), crl(4, 77)
    kept.take(new, now=NOW)
    with pytest.raises(CertificateError, match="number 3 was replaced by 4"):
        kept.take(old, now=NOW)
    kept.path.write_bytes(old)  # as somebody may who can write there
    with pytest.raises(CertificateError, match="replaced by 4"):
        load(kept)
    assert kept.take(new, now=NOW).number == 4


def test_another_list_of_the_same_number_is_refused(kept):
    """A CA put back from a copy gives a number out twice: whoever is revoked on one list lives on the other."""
    kept.take(crl(4, 77), now=NOW)
    forgetful = crl(4)
    with pytest.raises(CertificateError, match="another one of number 4"):
        kept.take(forgetful, now=NOW)
    kept.path.write_bytes(forgetful)
    with pytest.raises(CertificateError, match="another one of number 4"):
        load(kept)


def test_the_floor_outlives_the_list(kept):
    newest = crl(4, 77)
    kept.take(newest, now=NOW)
    kept.path.unlink()
    with pytest.raises(StorageError, match="no revocation list"):
        load(kept)
    for other in (crl(3), crl(4)):
        with pytest.raises(CertificateError):
            kept.take(other, now=NOW)
    kept.take(newest, now=NOW)
    assert load(kept).serial_numbers == {77}


def test_a_list_that_ended_is_an_error_and_a_newer_one_mends_it(kept):
    kept.take(crl(1), now=NOW)
    later = NOW + CRL_LIFETIME
    with pytest.raises(CertificateError, match="ended"):
        load(kept, now=later)
    kept.take(crl(2, now=later), now=later)
    assert load(kept, now=later).number == 2


def test_a_foreign_list_changes_nothing(kept):
    kept.take(crl(1, 5), now=NOW)
    for bad in (crl(9, authority=OTHER), b"", b"\x30\x00", crl(9, now=NOW + timedelta(hours=1))):
        with pytest.raises(CertificateError):
            kept.take(bad, now=NOW)
    assert (load(kept).number, read_crl_floor(kept.floor_path).number) == (1, 1)


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "null", '{"number": 1}', '{"number": 0, "sha256": ""}', '{"number": true, "sha256": "%s"}' % ("00" * 32),
     '{"number": 1.0, "sha256": "%s"}' % ("00" * 32), '{"number": 1, "sha256": "00"}', '{"number": 1, "sha256": 7}',
     '{"number": -1, "sha256": "%s"}' % ("00" * 32), '{"number": 1, "sha256": "%s", "x": 1}' % ("00" * 32)],
)  # fmt: skip
def test_a_damaged_floor_is_an_error_and_not_a_floor_of_nothing(kept, text):
    kept.take(crl(1), now=NOW)
    kept.floor_path.write_text(text)
    with pytest.raises(StorageError, match="damaged"):
        load(kept)
    with pytest.raises(StorageError, match="damaged"):
        kept.take(crl(2), now=NOW)


def test_no_floor_is_a_floor_of_nothing(tmp_path, kept):
    assert read_crl_floor(tmp_path / "none.json") == CrlFloor()
    kept.path.write_bytes(crl(7))
    assert load(kept).number == 7


def test_a_crash_between_list_and_floor_leaves_a_list_that_counts(kept):
    kept.take(crl(1), now=NOW)
    floor = kept.floor_path.read_bytes()
    kept.take(crl(2, 9), now=NOW)
    kept.floor_path.write_bytes(floor)
    assert load(kept).serial_numbers == {9}
    assert kept.take(kept.path.read_bytes(), now=NOW).number == 2
    assert json.loads(kept.floor_path.read_text())["number"] == 2
