"""Admission, told as attacks: what an attacker ships, swaps, deletes, replays or signs, and the one sentence that refuses it.

The certificates are real ones of a real CA, the FABs real zips, the installed packages real folders.
"""

import hashlib
import importlib.util
import io
import itertools
import os
import stat
import struct
import zipfile
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.admission import installed
from fedsec.admission.decision import (
    Approver,
    Floor,
    SitePolicy,
    VerifiedRelease,
    admit,
    choose_release,
    verify_release,
)
from fedsec.admission.fab import MAX_FAB_BYTES, read_fab
from fedsec.admission.installed import RUNTIME_PACKAGES, installed_packages, scan_packages
from fedsec.admission.manifest import MAX_PERIOD, Approval, FabEntry, FileEntry, Manifest, Release, approve, decode_release
from fedsec.codec import canonical_json
from fedsec.errors import AdmissionError, ConfigError, DecodeError, StorageError
from fedsec.identity.ca import CertificateAuthority
from fedsec.identity.names import Role
from fedsec.identity.verify import verify_peer
from fedsec.signing import Signer

FEDERATION = "hearts.example"
NOW = datetime(2030, 5, 1, 12, 0, 0, tzinfo=UTC)
AUTHORITY = CertificateAuthority.create(FEDERATION, now=NOW - timedelta(days=3))
TREE = {
    "client/__init__.py": b"",
    "client/app.py": b"app = 'client'\n",
    "server/__init__.py": b"",
    "server/app.py": b"app = 'server'\n",
    "fedsec/__init__.py": b"",
    "fedsec/policy.py": b"CAP = 8.0\n",
    "fedsec/plan/default.toml": b"epsilon = 8\n",
}
PYPROJECT = b"""[project]
name = "fedsec"
version = "0.1.0"
[tool.flwr.app]
publisher = "fedsec"
[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"
"""


def content_line(files):
    return "\n".join(f"{path},{hashlib.sha256(data).hexdigest()},{len(data) * 8}" for path, data in files.items()).encode()


def fab_files(**changes):
    """What an honest FAB holds; a value of None leaves a file out."""
    files = {"pyproject.toml": PYPROJECT, "LICENSE": b"Apache", **{p: d for p, d in TREE.items() if not p.startswith("fedsec/")}}
    files |= {path: data for path, data in changes.items() if data is not None}
    files = {path: data for path, data in files.items() if changes.get(path, b"") is not None}
    return {**files, ".info/CONTENT": content_line(files)}


def zipped(files, *, change=lambda info: None, packing=zipfile.ZIP_DEFLATED, comment=b""):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packing) as archive:
        for path, data in files.items() if isinstance(files, dict) else files:
            info = zipfile.ZipInfo(path, (2020, 1, 1, 0, 0, 0))
            info.compress_type = packing
            change(info)
            archive.writestr(info, data)
        archive.comment = comment
    return buffer.getvalue()


def entries_of(files):
    return tuple(sorted(FileEntry(path, hashlib.sha256(data).hexdigest(), len(data)) for path, data in files.items()))


def manifest_for(content, **changes):
    sound = {
        "federation": FEDERATION,
        "release": "spring",
        "version": 3,
        "not_before": NOW - timedelta(days=1),
        "not_after": NOW + timedelta(days=30),
        "fab": FabEntry("fedsec.fab", "fedsec/fedsec", "0.1.0", hashlib.sha256(content).hexdigest(), len(content)),
        "files": read_fab(content),
        "runtime": entries_of(TREE),
    }
    return Manifest(**{**sound, **changes})


@dataclass
class Admin:
    """An administrator with a key and a certificate."""

    name: str
    signer: Signer = field(default_factory=Signer.generate)
    certificate: bytes = b""
    issued_at: datetime = NOW - timedelta(hours=1)

    def __post_init__(self):
        self.certificate = self.certificate or AUTHORITY.issue_admin(self.name, self.signer.public_key, now=self.issued_at).certificate_der

    def approve(self, release, now=NOW - timedelta(minutes=30), intermediate=None):
        return approve(release, self.signer, certificate=self.certificate, intermediate=intermediate or AUTHORITY.intermediate_der, now=now)


ADA, BEN, CLEO, EVE = (Admin(name) for name in ("ada", "ben", "cleo", "eve"))
POLICY = SitePolicy(FEDERATION, frozenset({"ada", "ben", "cleo"}), 2)


def identify(approval: Approval) -> Approver:
    peer = verify_peer(
        approval.certificate,
        intermediate_der=approval.intermediate,
        root_der=AUTHORITY.root_der,
        federation=FEDERATION,
        role=Role.ADMIN,
        now=approval.approved_at,
    )
    return Approver(peer.name.name, peer.public_key, peer.serial_number)


FAB = zipped(fab_files())


def signed(*admins, **changes):
    release = Release(manifest_for(FAB, **changes))
    for admin in admins:
        release = admin.approve(release)
    return release


def verified(release, *, policy=POLICY, floor=None, now=NOW, revoked=frozenset()):
    return verify_release(release, policy=policy, floor=floor or Floor(), now=now, identify=identify, revoked=revoked)


def refused(reason, release, **how):
    with pytest.raises(AdmissionError, match=reason):
        verified(release, **how)


@pytest.fixture
def site(tmp_path):
    """Installed packages in a folder; gives a function that lists them as they are now."""
    for path, data in TREE.items():
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    def listed():
        return scan_packages({name: tmp_path / name for name in RUNTIME_PACKAGES})

    listed.folder = tmp_path
    return listed


RELEASE = signed(ADA, BEN)


# --- The honest case -----------------------------------------------------------------------------------------------------------------------


def test_a_release_with_two_approvals_lets_its_own_fab_pass(site):
    release = verified(RELEASE)
    assert release.approvers == ("ada", "ben")
    admit(FAB, release, site())


def test_a_release_file_reads_back_and_is_signed_as_one_thing():
    assert decode_release(RELEASE.encode()) == RELEASE
    assert decode_release(RELEASE.encode() + b"\n") == RELEASE


def test_only_verification_makes_a_verified_release():
    with pytest.raises(TypeError):
        VerifiedRelease(RELEASE.manifest, RELEASE.sha256.hex(), ("ada", "ben"))


# --- The server ships other code -----------------------------------------------------------------------------------------------------------


def test_an_unknown_fab_is_refused(site):
    other = zipped({"pyproject.toml": PYPROJECT, "client/app.py": b"import os; os.system('id')"})
    with pytest.raises(AdmissionError, match="is not that of release spring version 3"):
        admit(other, verified(RELEASE), site())


@pytest.mark.parametrize("position", [0, 30, len(FAB) // 2, len(FAB) - 1])
def test_a_fab_with_one_changed_byte_is_refused(site, position):
    edited = bytearray(FAB)
    edited[position] ^= 1
    with pytest.raises(AdmissionError, match="is not that of"):
        admit(bytes(edited), verified(RELEASE), site())


def test_two_files_that_were_swapped_are_refused_though_each_is_signed_somewhere(site):
    """NVFlare signs file by file: each of the swapped files has a good signature of its own there."""
    swapped = fab_files(**{"client/app.py": TREE["server/app.py"], "server/app.py": TREE["client/app.py"]})
    release = verified(RELEASE)
    with pytest.raises(AdmissionError, match="is not that of"):
        admit(zipped(swapped), release, site())
    with pytest.raises(AdmissionError, match=r"client/app\.py in the FAB is not the file that the release installs"):
        manifest_for(zipped(swapped))


def test_a_deleted_file_is_refused_though_every_file_left_is_signed(site):
    """As above: a file-by-file check has nothing to say of a file that is not there."""
    fewer = zipped(fab_files(**{"client/app.py": None}))
    with pytest.raises(AdmissionError, match="is not that of"):
        admit(fewer, verified(RELEASE), site())


def test_approvers_who_were_shown_other_files_than_the_fab_holds_approved_nothing(site):
    """The FAB's hash is right, its list of files is not: the site reads the FAB itself."""
    lying = replace(RELEASE.manifest, files=tuple(entry for entry in RELEASE.manifest.files if entry.path != "client/app.py"))
    release = verified(BEN.approve(ADA.approve(Release(lying))))
    with pytest.raises(AdmissionError, match=r"client/app\.py is not in it"):
        admit(FAB, release, site())


@pytest.mark.parametrize(
    "path",
    [
        "fedsec/policy.py",
        "fedsec/__init__.py",
        "numpy/__init__.py",
        "numpy.py",
        "sitecustomize.py",
        "torch.pth",
        "x/y.json",
        "clients/app.py",
    ],
)
def test_a_fab_that_brings_a_package_which_would_shadow_an_installed_one_makes_no_manifest(path):
    with pytest.raises(AdmissionError, match="would shadow what is installed"):
        manifest_for(zipped(fab_files(**{path: b"evil"})))


def test_a_client_module_that_is_not_installed_makes_no_manifest():
    with pytest.raises(AdmissionError, match="not the file that the release installs"):
        manifest_for(zipped(fab_files(**{"client/extra.py": b"evil"})))


@pytest.mark.parametrize(
    ("project", "reason"),
    [
        (PYPROJECT.replace(b"client.app:app", b"os:system"), "components"),
        (PYPROJECT.replace(b'clientapp = "client.app:app"', b'agentapp = "client.app:app"'), "components"),
        (PYPROJECT.replace(b"0.1.0", b"0.1.0/../../tmp/x"), "id or version"),
        (b"[", "names no app"),
        (b"\xff", "names no app"),
        (b"[project]\nname = 1\n", "names no app"),
    ],
)
def test_a_fab_whose_project_file_leads_elsewhere_is_refused(site, project, reason):
    fab = zipped(fab_files(**{"pyproject.toml": project}))
    with pytest.raises(AdmissionError, match=reason):
        admit(fab, verified(BEN.approve(ADA.approve(Release(manifest_for(fab))))), site())


def test_flowers_own_list_must_be_that_of_the_files(site):
    files = fab_files()
    fab = zipped({**files, ".info/CONTENT": files[".info/CONTENT"].replace(b"LICENSE", b"LICENCE")})
    with pytest.raises(AdmissionError, match="own list of files"):
        admit(fab, verified(BEN.approve(ADA.approve(Release(manifest_for(fab))))), site())


@pytest.mark.parametrize(("fab_id", "version"), [("fedsec", "1"), ("../x/y", "1"), ("a/b", "1/../../x"), ("a/b", ""), ("a/b", "..")])
def test_an_id_or_version_that_names_another_folder_makes_no_manifest(fab_id, version):
    with pytest.raises(AdmissionError, match="publisher/project"):
        FabEntry("x.fab", fab_id, version, "0" * 64, 1)


# --- Zips that two readers read differently ------------------------------------------------------------------------------------------------


def bad_fab(reason, content):
    with pytest.raises(AdmissionError, match=reason):
        read_fab(content)


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../client/app.py", "client/../../x.py", "client//app.py", "./client/app.py", "client/.hidden.py", ".info/OTHER", "a\\b.py",
     "client/app.py ", "client/ä.py", "C:/x.py", "client/\n.py", "-rf", "x" * 101 + ".py", "client/" * 17 + "a.py"],
)  # fmt: skip
def test_paths_that_lead_elsewhere_or_look_like_another_are_refused(path):
    bad_fab("may not stand in a release", zipped([(path, b"x")]))


def test_a_name_that_ends_early_for_some_readers_is_refused():
    honest = zipped([("client/appX.py", b"x")], packing=zipfile.ZIP_STORED)
    bad_fab("may not stand|not a zip|plain file", honest.replace(b"client/appX.py", b"client/app\0.py"))


def test_two_entries_of_one_name_are_refused():
    with pytest.warns(UserWarning, match="Duplicate name"):
        content = zipped([("client/app.py", b"good"), ("client/app.py", b"evil")])
    bad_fab("twice", content)


@pytest.mark.parametrize(
    ("one", "two", "reason"), [("LICENSE", "License", "its case"), ("client/a", "client/a/b.py", "as a file and as a folder")]
)
def test_names_that_clash_on_some_file_systems_are_refused(one, two, reason):
    bad_fab(reason, zipped([(one, b"x"), (two, b"y")]))


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFDIR, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_are_refused(kind):
    def change(info):
        info.external_attr = (kind | 0o777) << 16

    bad_fab("link or a device", zipped([("client/app.py", b"/etc/passwd")], change=change))


def test_folders_are_refused():
    bad_fab("may not stand|plain file", zipped([("client/", b"")]))


def test_a_bomb_is_refused_before_it_goes_off():
    bad_fab("times its size", zipped([("client/app.py", b"\0" * (4 << 20))]))


def test_many_small_bombs_are_refused_by_their_sum():
    noise = os.urandom(160_000)
    content = zipped([(f"client/f{n}.py", noise + b"\0" * 7_800_000) for n in range(9)])
    assert len(content) < MAX_FAB_BYTES
    bad_fab("unpacks to more than", content)


def test_a_file_that_is_larger_than_it_says_is_refused():
    content = bytearray(zipped([("client/app.py", b"x" * 100)], packing=zipfile.ZIP_STORED))
    directory = content.index(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = struct.pack("<I", 99)
    bad_fab("not a zip|size that it states", bytes(content))


def test_encrypted_and_strangely_packed_entries_are_refused():
    def encrypt(info):
        info.flag_bits |= 1

    content = bytearray(zipped([("client/app.py", b"x")]))
    content[content.index(b"PK\x01\x02") + 8] |= 1
    bad_fab("encrypted", bytes(content))
    bad_fab("packed in an unknown way", zipped([("client/app.py", b"x" * 9)], packing=zipfile.ZIP_LZMA))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"#!/bin/sh\n" + FAB, "before its first entry|not a zip"),
        (FAB + b"trailing", "behind its last entry|not a zip"),
        (zipped(fab_files(), comment=b"hello"), "behind its last entry"),
        (b"", "not a zip"),
        (b"PK\x03\x04" + b"\0" * 100, "not a zip"),
        (FAB[:-30], "not a zip"),
        (zipped([]), "entries"),
        (b"x" * (MAX_FAB_BYTES + 1), "over the limit"),
    ],
)
def test_what_is_not_exactly_an_archive_is_refused(content, reason):
    bad_fab(reason, content)


def test_too_many_entries_are_refused():
    bad_fab("entries", zipped([(f"client/f{n}.py", b"") for n in range(2001)]))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_fab_is_refused_or_reads_the_same_and_never_breaks_the_reader(data):
    damaged = bytearray(FAB)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(FAB) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = read_fab(bytes(damaged))
    except AdmissionError:
        return
    assert {entry.path for entry in found}  # whatever was read has a hash of its own, which the manifest's must equal


# --- Old, early, foreign releases -----------------------------------------------------------------------------------------------------------


def test_a_version_below_the_floor_is_refused():
    newer = verified(signed(ADA, BEN, version=4))
    refused("older than version 4, which this site accepted before", RELEASE, floor=newer.floor)


def test_the_accepted_version_itself_is_accepted_again():
    assert verified(RELEASE, floor=verified(RELEASE).floor).manifest.version == 3


def test_another_release_under_the_accepted_number_is_refused():
    refused("two releases, one number", signed(ADA, BEN, release="autumn"), floor=verified(RELEASE).floor)


def test_an_expired_manifest_is_refused_from_its_last_second_on():
    refused("expired", RELEASE, now=RELEASE.manifest.not_after)
    assert verified(RELEASE, now=RELEASE.manifest.not_after - timedelta(seconds=1))


def test_a_manifest_that_is_not_valid_yet_is_refused():
    refused("not valid before", RELEASE, now=RELEASE.manifest.not_before - timedelta(seconds=1))


def test_a_manifest_of_another_federation_is_refused():
    refused("of the federation lungs.example, not hearts.example", signed(ADA, BEN, federation="lungs.example"))


@pytest.mark.parametrize("days", [91, 0, -1])
def test_a_period_without_end_or_sense_makes_no_manifest(days):
    with pytest.raises(AdmissionError, match="at most 90 days"):
        manifest_for(FAB, not_after=NOW - timedelta(days=1) + timedelta(days=days))
    assert MAX_PERIOD.days == 90


# --- Approvals ------------------------------------------------------------------------------------------------------------------------------


def test_no_approval_and_one_approval_are_too_few():
    refused("has 0 approvals that count here, 2 are needed", signed())
    refused("has 1 approvals that count here, 2 are needed", signed(ADA))


def test_the_same_approver_twice_counts_once_even_with_two_keys():
    again = Admin("ada")
    refused("ada, or that key, has approved already", signed(ADA, again))


def test_one_key_under_two_names_counts_once():
    alias = Admin("cleo", signer=ADA.signer)
    refused("that key, has approved already", signed(ADA, alias))


def test_a_stranger_with_a_good_admin_certificate_does_not_count():
    refused("eve is no approver of this site", signed(ADA, EVE))


def test_a_node_that_calls_itself_like_an_approver_does_not_count():
    signer = Signer.generate()
    node = AUTHORITY.issue_node("ben", signer.public_key, site="basel", now=NOW - timedelta(hours=1))
    refused("admin certificate", signed(ADA, Admin("ben", signer, node.certificate_der)))


def test_a_server_does_not_approve_the_code_that_it_ships():
    signer = Signer.generate()
    server = AUTHORITY.issue_server("ben", signer.public_key, now=NOW - timedelta(hours=1))
    refused("admin certificate", signed(ADA, Admin("ben", signer, server.certificate_der)))


def test_an_admin_of_another_federation_does_not_count():
    other = CertificateAuthority.create(FEDERATION, now=NOW - timedelta(days=1))
    signer = Signer.generate()
    foreign = other.issue_admin("ben", signer.public_key, now=NOW - timedelta(hours=1))
    release = Admin("ben", signer, foreign.certificate_der).approve(signed(ADA), intermediate=other.intermediate_der)
    refused("not issued by", release)


def test_a_revoked_approver_does_not_count_any_more():
    serial = identify(RELEASE.approvals[1]).serial_number
    refused("the certificate of ben was revoked", RELEASE, revoked=frozenset({serial}))


def test_an_approval_made_after_the_certificate_ended_does_not_count():
    late = Admin("ben", issued_at=NOW - timedelta(hours=20))
    refused("expired", ADA.approve(late.approve(signed())))


def test_an_approval_from_before_the_certificate_does_not_count():
    release = BEN.approve(signed(ADA), now=BEN.issued_at - timedelta(hours=1))
    refused("not valid before", release)


def test_an_approval_from_the_future_does_not_count():
    release = BEN.approve(signed(ADA), now=NOW + timedelta(minutes=6))
    refused("an approval from the future", release)


def test_a_certificate_that_ended_since_still_speaks_for_its_approval():
    assert verified(RELEASE, now=NOW + timedelta(days=20)).approvers == ("ada", "ben")


def test_the_time_of_an_approval_is_signed():
    ada, ben = RELEASE.approvals
    moved = Release(RELEASE.manifest, (ada, replace(ben, approved_at=ben.approved_at + timedelta(seconds=1))))
    refused("does not verify", moved)


def test_an_approval_of_another_manifest_does_not_count():
    other = signed(BEN, version=4)
    refused("does not verify", Release(RELEASE.manifest, (RELEASE.approvals[0], other.approvals[0])))


def test_junk_approvals_do_no_harm():
    junk = Approval(b"\x30\x00", b"", NOW - timedelta(minutes=1), bytes(64))
    assert verified(Release(RELEASE.manifest, (junk, *RELEASE.approvals))).approvers == ("ada", "ben")
    with pytest.raises(AdmissionError, match="at most 32"):
        Release(RELEASE.manifest, (junk,) * 33)


def test_a_stolen_key_cannot_approve_in_the_past_for_the_future():
    """The certificate ended in March; the thief signs in May, says that it was March, and writes the manifest's dates as he likes."""
    refused("an approval from long before", BEN.approve(signed(ADA), now=NOW - timedelta(days=3)))
    long = signed(not_before=NOW - timedelta(days=60), not_after=NOW + timedelta(days=30))
    march = Admin("ben", issued_at=NOW - timedelta(days=2))
    refused("longer|long before|1 approvals", march.approve(ADA.approve(long), now=march.issued_at - timedelta(days=90)))


def test_an_approval_from_more_than_90_days_before_the_manifests_end_does_not_count():
    """Twelve hours before a manifest of 90 days is early enough for its beginning, but its end is then more than 90 days away."""
    longest = {"not_before": NOW - timedelta(hours=1), "not_after": NOW - timedelta(hours=1) + MAX_PERIOD}
    early = Admin("ben", issued_at=NOW - timedelta(hours=10))
    late = early.approve(signed(ADA, **longest), now=NOW - timedelta(hours=1))
    assert verified(late).approvers == ("ada", "ben")
    refused("an approval from long before", early.approve(signed(ADA, **longest), now=NOW - timedelta(hours=1, seconds=1)))


def test_a_manifest_whose_installed_files_could_be_taken_for_one_another_is_none():
    for path in ("fedsec/Policy.py", "fedsec/policy.py/x.py"):
        with pytest.raises(AdmissionError, match=r"the runtime has"):
            signed(runtime=entries_of({**TREE, path: b""}))


def test_a_package_that_would_come_from_elsewhere_is_refused(tmp_path, monkeypatch):
    """Another ``client`` stands before the installed one in the path: it is what would run, and nothing of it is in the release."""
    (tmp_path / "client").mkdir()
    (tmp_path / "client" / "__init__.py").write_bytes(b"")
    find = installed.find_spec

    def found(name):
        return importlib.util.spec_from_file_location(name, tmp_path / "client" / "__init__.py") if name == "client" else find(name)

    assert set(installed_packages()) == set(RUNTIME_PACKAGES)
    monkeypatch.setattr(installed, "find_spec", found)
    with pytest.raises(AdmissionError, match="not from beside fedsec"):
        installed_packages()


def test_an_approval_stands_for_one_certificate():
    """Whoever carries it cannot put another certificate of the same key beside it, one that was valid at another time."""
    other = AUTHORITY.issue_admin("ben", BEN.signer.public_key, now=NOW - timedelta(hours=2)).certificate_der
    ada, ben = RELEASE.approvals
    refused("does not verify", Release(RELEASE.manifest, (ada, replace(ben, certificate=other))))


def test_a_pinned_key_outweighs_a_certificate_that_the_ca_issued_to_somebody_else():
    pinned = replace(POLICY, keys={"ben": Signer.generate().public_key})
    refused("ben approved with another key than the one that this site pins", RELEASE, policy=pinned)
    assert verified(RELEASE, policy=replace(POLICY, keys={"ben": BEN.signer.public_key})).approvers == ("ada", "ben")


def test_a_version_that_would_use_the_numbers_up_is_refused():
    refused("use the numbers up", signed(ADA, BEN, version=1004), floor=verified(RELEASE).floor)
    assert verified(signed(ADA, BEN, version=1003), floor=verified(RELEASE).floor)


def test_approving_twice_replaces_the_first():
    assert len(BEN.approve(BEN.approve(signed(ADA))).approvals) == 2


@pytest.mark.parametrize(("approvers", "approvals"), [((), 0), ((), 1), (("ada",), 0), (("ada",), 2), (("ada",), -1)])
def test_a_site_that_could_never_or_always_say_yes_is_refused(approvers, approvals):
    with pytest.raises(ConfigError, match="approv"):
        SitePolicy(FEDERATION, frozenset(approvers), approvals)


# --- The installed packages -----------------------------------------------------------------------------------------------------------------


def test_an_edited_installed_file_is_named(site):
    (site.folder / "fedsec/policy.py").write_bytes(b"CAP = 1e9\n")
    with pytest.raises(AdmissionError, match=r"fedsec/policy\.py was changed"):
        admit(FAB, verified(RELEASE), site())


@pytest.mark.parametrize("extra", ["fedsec/_hook.py", "fedsec/fast.so", "client/x.pth", "server/policy.pyc", "fedsec/plan/other.toml"])
def test_an_extra_installed_file_is_named(site, extra):
    (site.folder / extra).write_bytes(b"evil")
    with pytest.raises(AdmissionError, match=f"{extra} is not in it"):
        admit(FAB, verified(RELEASE), site())


def test_a_missing_installed_file_is_named(site):
    (site.folder / "fedsec/plan/default.toml").unlink()
    with pytest.raises(AdmissionError, match=r"default\.toml is missing"):
        admit(FAB, verified(RELEASE), site())


def test_a_link_in_the_installation_is_refused(site):
    (site.folder / "fedsec/link.py").symlink_to("/etc/passwd")
    with pytest.raises(AdmissionError, match="is a link"):
        site()


def test_byte_code_caches_do_not_count(site):
    cache = site.folder / "fedsec/__pycache__"
    cache.mkdir()
    (cache / "policy.cpython-311.pyc").write_bytes(b"x")
    admit(FAB, verified(RELEASE), site())


def test_a_folder_that_cannot_be_read_is_no_empty_folder(site):
    with pytest.raises(StorageError):
        scan_packages({"fedsec": site.folder / "nowhere"})


def test_the_real_installation_can_be_listed():
    entries = scan_packages(installed_packages())
    paths = {entry.path for entry in entries}
    assert {"fedsec/policy.py", "client/app.py", "server/app.py"} <= paths
    assert not any("__pycache__" in path for path in paths)


# --- Which release is the site's ------------------------------------------------------------------------------------------------------------


def test_the_newest_release_that_is_installed_is_the_sites(site):
    old, new = verified(RELEASE), verified(signed(ADA, BEN, version=4))
    assert choose_release([old, new], site()) is new


def test_a_newer_release_waits_until_it_is_installed(site):
    upgraded = {**TREE, "fedsec/policy.py": b"CAP = 4.0\n"}
    old, new = verified(RELEASE), verified(signed(ADA, BEN, version=4, runtime=entries_of(upgraded)))
    assert choose_release([new, old], site()) is old
    (site.folder / "fedsec/policy.py").write_bytes(upgraded["fedsec/policy.py"])
    assert choose_release([new, old], site()) is new


def test_two_releases_of_one_version_are_nobodys(site):
    with pytest.raises(AdmissionError, match="two different releases have the version 3"):
        choose_release([verified(RELEASE), verified(signed(ADA, BEN, release="autumn"))], site())


def test_no_release_admits_nothing(site):
    with pytest.raises(AdmissionError, match="no release counts here"):
        choose_release([], site())


# --- The file -------------------------------------------------------------------------------------------------------------------------------


def mutated(*path, value):
    import json

    document = json.loads(RELEASE.encode())
    place = document
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return canonical_json(document)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{}", b"[]", b"\xff", b"null", RELEASE.encode() + b" ", RELEASE.encode().replace(b'"approvals":[', b'"approvals": ['),
        mutated("format", value="fedsec/release/v2"),
        mutated("manifest", "format", value="fedsec/manifest/v0"),
        mutated("manifest", "version", value=0),
        mutated("manifest", "version", value=True),
        mutated("manifest", "version", value=3.5),
        mutated("manifest", "version", value=1 << 60),
        mutated("manifest", "not_after", value="2030-05-01"),
        mutated("manifest", "not_after", value="2030-05-01T12:00:00+00:00"),
        mutated("manifest", "federation", value="UPPER"),
        mutated("manifest", "release", value="a b"),
        mutated("manifest", "files", value=[]),
        mutated("manifest", "runtime", value=[]),
        mutated("manifest", "extra", value=1),
        mutated("manifest", "fab", value=None),
        mutated("manifest", "fab", "name", value="\n"),
        mutated("manifest", "fab", "sha256", value="A" * 64),
        mutated("manifest", "runtime", 0, "path", value="../x"),
        mutated("manifest", "runtime", 0, "path", value="zzz.py"),
        mutated("manifest", "runtime", 0, "size", value=-1),
        mutated("manifest", "runtime", 0, "mode", value=1),
        mutated("approvals", 0, "signature", value="zz"),
        mutated("approvals", 0, "signature", value="AB"),
        mutated("approvals", 0, "certificate", value="00" * 70000),
        mutated("approvals", value={}),
        mutated("approvals", value=[{}] * 33),
    ],
)  # fmt: skip
def test_a_file_that_is_not_a_release_in_its_one_encoding_is_refused(data):
    with pytest.raises(DecodeError):
        decode_release(data)


def test_a_file_beyond_the_limit_is_refused_unread():
    with pytest.raises(DecodeError, match="over the limit"):
        decode_release(b" " * (8 * 1024 * 1024 + 1))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(RELEASE.encode()) - 1), st.integers(1, 255))
def test_any_changed_byte_of_a_release_file_is_refused_or_costs_its_approvals(position, mask):
    data = bytearray(RELEASE.encode())
    data[position] ^= mask
    try:
        release = decode_release(bytes(data))
        found = verified(release)
    except (DecodeError, AdmissionError):
        return
    raise AssertionError(f"byte {position} may be changed: {found}")


@given(st.permutations(range(3)))
def test_the_order_of_approvals_does_not_matter(order):
    release = signed(ADA, BEN, CLEO)
    shuffled = Release(release.manifest, tuple(release.approvals[index] for index in order))
    assert sorted(verified(shuffled, policy=replace(POLICY, approvals=3)).approvers) == ["ada", "ben", "cleo"]


def test_every_subset_of_approvers_counts_by_its_number_only():
    for size in range(4):
        for admins in itertools.combinations((ADA, BEN, CLEO), size):
            if size >= 2:
                assert len(verified(signed(*admins)).approvers) == size
            else:
                refused("approvals that count here", signed(*admins))


def test_the_names_of_packages_are_those_that_the_wheel_brings():
    text = (Path(__file__).resolve().parent.parent / "pyproject.toml").read_text()
    assert all(f'"{name}*"' in text for name in RUNTIME_PACKAGES)
