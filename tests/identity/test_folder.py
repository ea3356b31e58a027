"""Identity folders: whole or absent, the key for its owner only, a certificate replaced for the same key and name only."""

import os
import stat
from datetime import UTC, datetime, timedelta

import pytest

from fedsec.errors import CertificateError, StorageError
from fedsec.identity.ca import CertificateAuthority
from fedsec.identity.folder import (
    PASSPHRASE_VARIABLE,
    create_identity,
    load_identity,
    load_key,
    load_own_key,
    passphrase_of,
    read_passphrase,
    replace_certificate,
    use_passphrase_file,
)
from fedsec.identity.names import Role
from fedsec.signing import Signer

NOW = datetime(2030, 5, 1, 12, 0, 0, tzinfo=UTC)
AUTHORITY = CertificateAuthority.create("hearts.example", now=NOW)
OTHER = CertificateAuthority.create("hearts.example", now=NOW)
SIGNER = Signer.generate()


def issue(signer=SIGNER, name="client-7", now=NOW, authority=AUTHORITY):
    return authority.issue_node(name, signer.public_key, site="basel", now=now).certificate_der


def make(folder, **how):
    create_identity(folder, SIGNER, issue(), AUTHORITY.intermediate_der, AUTHORITY.root_der, **how)
    return folder


def test_it_is_read_back(tmp_path):
    found = load_identity(make(tmp_path / "identity"))
    assert (found.name.role, found.name.name, found.name.site) == (Role.NODE, "client-7", "basel")
    assert (found.signer.public_key, found.root_der) == (SIGNER.public_key, AUTHORITY.root_der)
    assert found.not_after == NOW + timedelta(hours=72)
    assert stat.S_IMODE((tmp_path / "identity" / "key.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "identity").stat().st_mode) == 0o700
    assert "signer" not in repr(found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["identity"]


def test_an_ended_identity_loads(tmp_path):
    """Its holder must be able to say that it ended, and whose it was."""
    assert load_identity(make(tmp_path / "identity")).not_after < datetime(2031, 1, 1, tzinfo=UTC)


def test_a_passphrase_is_needed_where_there_is_one_and_only_there(tmp_path):
    make(tmp_path / "identity", passphrase=b"open sesame")
    assert b"ENCRYPTED" in (tmp_path / "identity" / "key.pem").read_bytes()
    assert load_identity(tmp_path / "identity", passphrase=b"open sesame").signer.public_key == SIGNER.public_key
    for wrong in (None, b"open barley"):
        with pytest.raises(StorageError, match=r"key\.pem") as caught:
            load_identity(tmp_path / "identity", passphrase=wrong)
        assert "barley" not in str(caught.value)
    with pytest.raises(StorageError):
        load_identity(make(tmp_path / "plain"), passphrase=b"open sesame")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o601, 0o610])
def test_a_key_that_others_may_touch_is_refused(tmp_path, mode):
    (make(tmp_path / "identity") / "key.pem").chmod(mode)
    with pytest.raises(StorageError, match=rf"read by others \(mode {mode:o}\)"):
        load_identity(tmp_path / "identity")


def test_a_key_behind_a_link_a_pipe_or_a_folder_is_refused(tmp_path):
    folder = make(tmp_path / "identity")
    (folder / "key.pem").rename(tmp_path / "elsewhere.pem")
    (folder / "key.pem").symlink_to(tmp_path / "elsewhere.pem")
    with pytest.raises(StorageError, match="cannot read"):
        load_identity(folder)
    (folder / "key.pem").unlink()
    os.mkfifo(folder / "key.pem", 0o600)
    with pytest.raises(StorageError, match="not a plain file"):
        load_identity(folder)
    (folder / "key.pem").unlink()
    (folder / "key.pem").mkdir()
    with pytest.raises(StorageError):
        load_identity(folder)


@pytest.mark.parametrize("name", ["key.pem", "certificate.der", "intermediate.der", "root.der"])
@pytest.mark.parametrize("damage", ["gone", "empty", "nonsense", "huge"])
def test_a_missing_or_damaged_file_is_refused(tmp_path, name, damage):
    path = make(tmp_path / "identity") / name
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "nonsense": b"nonsense", "huge": bytes(200_000)}[damage])
    with pytest.raises((StorageError, CertificateError)):
        load_identity(tmp_path / "identity")


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    for name, data in (
        ("certificate.der", issue(Signer.generate())),
        ("intermediate.der", OTHER.intermediate_der),
        ("root.der", OTHER.root_der),
        ("certificate.der", issue(authority=OTHER)),
    ):
        folder = make(tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}")
        (folder / name).write_bytes(data)
        with pytest.raises(CertificateError):
            load_identity(folder)


def test_an_existing_identity_is_not_overwritten(tmp_path):
    folder = make(tmp_path / "identity")
    before = (folder / "key.pem").read_bytes()
    with pytest.raises(StorageError, match="not overwritten"):
        make(folder)
    assert (folder / "key.pem").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["identity"]


def test_a_certificate_for_another_key_makes_no_identity(tmp_path):
    with pytest.raises(CertificateError, match="another key"):
        create_identity(tmp_path / "identity", Signer.generate(), issue(), AUTHORITY.intermediate_der, AUTHORITY.root_der)
    assert list(tmp_path.iterdir()) == []


def test_a_renewed_certificate_takes_the_old_ones_place(tmp_path):
    folder = make(tmp_path / "identity")
    later = NOW + timedelta(hours=48)
    new = issue(now=later)
    renewed = replace_certificate(folder, new, AUTHORITY.intermediate_der)
    assert renewed.certificate_der == new == load_identity(folder).certificate_der
    assert load_identity(folder).not_after == later + timedelta(hours=72)


def test_a_renewed_intermediate_comes_along(tmp_path):
    folder = make(tmp_path / "identity")
    later = NOW + timedelta(hours=48)
    renewed = AUTHORITY.with_new_intermediate(now=later)
    replace_certificate(folder, issue(now=later, authority=renewed), renewed.intermediate_der)
    assert load_identity(folder).intermediate_der == renewed.intermediate_der


def test_an_intermediate_of_a_version_that_x509_does_not_have_is_a_certificate_error(tmp_path):
    """A gateway hands it out with a renewal: what it says must not end the agent."""
    folder = make(tmp_path / "identity")
    hostile = AUTHORITY.intermediate_der.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020107"), 1)
    assert hostile != AUTHORITY.intermediate_der
    with pytest.raises(CertificateError, match="intermediate: not a certificate that can be read"):
        replace_certificate(folder, issue(), hostile)
    assert (folder / "intermediate.der").read_bytes() == AUTHORITY.intermediate_der


def test_the_old_certificate_goes_with_the_new_intermediate(tmp_path):
    """As after a crash between the two files of a replacement."""
    folder = make(tmp_path / "identity")
    (folder / "intermediate.der").write_bytes(AUTHORITY.with_new_intermediate(now=NOW + timedelta(hours=48)).intermediate_der)
    load_identity(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda: (issue(Signer.generate()), AUTHORITY.intermediate_der),
        lambda: (issue(name="client-8"), AUTHORITY.intermediate_der),
        lambda: (issue(authority=OTHER), OTHER.intermediate_der),
        lambda: (b"nonsense", AUTHORITY.intermediate_der),
        lambda: (AUTHORITY.issue_server("main", SIGNER.public_key, now=NOW).certificate_der, AUTHORITY.intermediate_der),
    ],
    ids=["another key", "another name", "another root", "no certificate", "another role"],
)
def test_no_other_certificate_takes_its_place(tmp_path, change):
    folder = make(tmp_path / "identity")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(CertificateError):
        replace_certificate(folder, *change())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_key_may_be_read_alone(tmp_path):
    assert load_key(make(tmp_path / "identity") / "key.pem").public_key == SIGNER.public_key
    with pytest.raises(StorageError):
        load_key(tmp_path / "none.pem")


def test_the_environment_names_the_file_with_the_passphrase_and_never_the_passphrase(tmp_path, monkeypatch):
    """What an agent hands to its ClientApp, and a server host to its gateway."""
    folder, file = make(tmp_path / "identity", passphrase=b"open sesame"), tmp_path / "passphrase"
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "")
    monkeypatch.delenv(PASSPHRASE_VARIABLE)
    with pytest.raises(StorageError, match="is encrypted: name the file"):
        load_identity(folder)
    file.write_text("open sesame\n")
    file.chmod(0o600)
    assert use_passphrase_file(None) is None
    assert use_passphrase_file(file) == passphrase_of(None) == b"open sesame"
    assert os.environ[PASSPHRASE_VARIABLE] == str(file)
    assert load_identity(folder).signer.public_key == load_own_key(folder).public_key == SIGNER.public_key
    renewed = issue(now=NOW + timedelta(hours=1))
    assert replace_certificate(folder, renewed, AUTHORITY.intermediate_der).certificate_der == renewed
    assert b"ENCRYPTED" in (folder / "key.pem").read_bytes()
    load_identity(make(tmp_path / "plain"))  # a key in the clear needs none
    file.write_text("open barley\n")
    with pytest.raises(StorageError, match=r"key\.pem"):
        load_identity(folder)
    file.unlink()
    with pytest.raises(StorageError, match="passphrase"):
        load_identity(folder)


@pytest.mark.parametrize(("mode", "passes"), [(0o440, True), (0o400, True), (0o600, True), (0o460, False), (0o444, False), (0o442, False), (0o450, False)])  # fmt: skip
def test_what_systemd_hands_over_may_be_readable_by_a_group(tmp_path, monkeypatch, mode, passes):
    """LoadCredential= grants by an access list, whose mask shows as the group's bits."""
    folder = tmp_path / "credentials"
    (folder / "sub").mkdir(parents=True)
    for path in (folder / "passphrase", folder / "sub" / "passphrase", tmp_path / "passphrase"):
        path.write_text("open sesame\n")
        path.chmod(mode)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    if passes:
        assert read_passphrase(folder / "passphrase") == b"open sesame"
    else:
        with pytest.raises(StorageError, match="may be read by others"):
            read_passphrase(folder / "passphrase")
    if mode & 0o077:
        for elsewhere in (tmp_path / "passphrase", folder / "sub" / "passphrase", folder / ".." / "passphrase"):
            with pytest.raises(StorageError, match="may be read by others"):
                read_passphrase(elsewhere)
        monkeypatch.delenv("CREDENTIALS_DIRECTORY")
        with pytest.raises(StorageError, match="may be read by others"):
            read_passphrase(folder / "passphrase")


def test_passphrases_come_from_files_of_their_owner(tmp_path):
    path = tmp_path / "passphrase"
    path.write_bytes(b"open sesame\r\nsecond line")
    with pytest.raises(StorageError, match="read by others"):
        read_passphrase(path)
    path.chmod(0o600)
    assert read_passphrase(path) == b"open sesame"
    assert read_passphrase(None) is None
    for bad in (b"", b"\n", b"x" * 1001):
        path.write_bytes(bad)
        with pytest.raises(StorageError, match="first line"):
            read_passphrase(path)
    with pytest.raises(StorageError):
        read_passphrase(tmp_path / "none")
