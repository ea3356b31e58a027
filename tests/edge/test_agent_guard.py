"""What a server may make a SuperNode run: real releases and certificates of a real CA, answers as a hostile SuperLink would write them."""

import asyncio
import hashlib
import io
import json
import os
import zipfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.exceptions import InvalidSignature

from fedsec.admission.fab import open_fab
from fedsec.admission.installed import RUNTIME_PACKAGES, scan_packages
from fedsec.admission.manifest import FabEntry, Manifest, Release, approve
from fedsec.edge import agent_guard, agent_releases, fleet_pb2
from fedsec.edge.agent_guard import RunGuard
from fedsec.edge.agent_releases import ReleaseStore, begin_floor
from fedsec.edge.agent_status import Status
from fedsec.edge.audit import AuditLog
from fedsec.edge.edge_client import Answer
from fedsec.edge.loopback import TRUSTED_NAME, make_loopback
from fedsec.errors import AdmissionError, ConfigError, DecodeError, StorageError
from fedsec.identity.ca import CertificateAuthority
from fedsec.identity.folder import make_identity
from fedsec.identity.revocation import Revocation, make_crl
from fedsec.identity.verify import claimed_serial_number
from fedsec.signing import Signer

FEDERATION = "hearts.example"
START = datetime(2030, 5, 1, 12, 0, 0, tzinfo=UTC)
PYPROJECT = b"""[project]
name = "fedsec"
version = "0.1.0"
[tool.flwr.app]
publisher = "fedsec"
[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"
"""


def make_fab(tree):
    files = {"pyproject.toml": PYPROJECT, **{path: data for path, data in tree.items() if path.startswith(("client/", "server/"))}}
    listed = "\n".join(f"{path},{hashlib.sha256(data).hexdigest()},{len(data) * 8}" for path, data in files.items())
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in {**files, ".info/CONTENT": listed.encode()}.items():
            archive.writestr(zipfile.ZipInfo(path, (2024, 10, 1, 0, 0, 0)), data)
    return buffer.getvalue()


class Site:
    """An installation, a release store, a guard, and a clock that can be moved."""

    def __init__(self, folder):
        self.folder, self.now, self.crl_number, self.revoked = folder, START, 0, []
        self.authority = CertificateAuthority.create(FEDERATION, now=START - timedelta(days=2))
        self.tree = {f"{name}/__init__.py": b"" for name in RUNTIME_PACKAGES} | {
            "client/app.py": b"app = 1\n",
            "server/app.py": b"app = 2\n",
        }
        for path, data in self.tree.items():
            (folder / "installed" / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / "installed" / path).write_bytes(data)
        self.ada = Signer.generate()
        self.ada_certificate = self.authority.issue_admin("ada", self.ada.public_key, now=START - timedelta(hours=1)).certificate_der
        signer = Signer.generate()
        issued = self.authority.issue_node("node-a", signer.public_key, site="basel", now=START - timedelta(hours=1))
        self.identity = make_identity(signer, issued.certificate_der, self.authority.intermediate_der, self.authority.root_der)
        (folder / "releases").mkdir()
        begin_floor(folder / "floor.json")
        self.fab = make_fab(self.tree)
        self.store = self.open_store()
        self.start()

    def open_store(self, **changes):
        settings = {
            "approvers": ["ada"],
            "approvals": 1,
            "floor_file": self.folder / "floor.json",
            "clock": lambda: self.now,
            "scan": self.scan,
        }
        return ReleaseStore(self.folder / "releases", self.identity, **{**settings, **changes})

    def start(self):
        self.loopback = make_loopback(self.folder / "loopback", now=self.now)
        self.audit = self.folder / "audit.jsonl"
        self.status = Status(self.folder / "status.json", AuditLog(self.audit), clock=lambda: self.now)
        self.guard = RunGuard(self.store, self.loopback, self.status, clock=lambda: self.now)

    def scan(self):
        return scan_packages({name: self.folder / "installed" / name for name in RUNTIME_PACKAGES})

    def release(self, version=1, *, fab=None, days=30, by_ada=True, at=None):
        content = fab or self.fab
        opened = open_fab(content)
        entry = FabEntry("x.fab", opened.fab_id, opened.fab_version, hashlib.sha256(content).hexdigest(), len(content))
        begins = (at or self.now) - timedelta(minutes=5)
        manifest = Manifest(
            federation=FEDERATION, release="fedsec", version=version, not_before=begins, not_after=begins + timedelta(days=days), fab=entry, files=opened.files, runtime=self.scan()
        )  # fmt: skip
        made = Release(manifest)
        return approve(made, self.ada, certificate=self.ada_certificate, intermediate=self.authority.intermediate_der, now=self.now) if by_ada else made  # fmt: skip

    def crl(self, *, lifetime=timedelta(days=60)):
        self.crl_number += 1
        return make_crl(self.authority, self.revoked, number=self.crl_number, now=self.now, lifetime=lifetime)

    def offer(self, *releases):
        return self.store.offer([release.encode() for release in releases], self.crl())

    # What the SuperNode asks, and what a SuperLink answers.

    def get_run(self, run_id=7, *, fab=None, fab_hash=None, **words):
        sha = fab_hash if fab_hash is not None else hashlib.sha256(fab or self.fab).hexdigest()
        run = fleet_pb2.Run(**{"run_id": run_id, "fab_id": "fedsec/fedsec", "fab_version": "0.1.0", "fab_hash": sha, **words})
        request = fleet_pb2.GetRunRequest(run_id=run_id).SerializeToString()
        return asyncio.run(self.guard.run_answer(request, Answer(200, "p", fleet_pb2.GetRunResponse(run=run).SerializeToString(), b"")))

    def get_fab(self, run_id=7, *, fab=None, asked=None, said=None, verifications=None, status=200):
        content = self.fab if fab is None else fab
        sha = hashlib.sha256(content).hexdigest()
        request = fleet_pb2.GetFabRequest(run_id=run_id, hash_str=asked or sha).SerializeToString()
        reply = fleet_pb2.GetFabResponse(fab=fleet_pb2.Fab(hash_str=said or sha, content=content, verifications=verifications or {}))
        answer = asyncio.run(self.guard.fab_answer(request, Answer(status, "p", reply.SerializeToString(), b"")))
        return fleet_pb2.GetFabResponse.FromString(answer.body).fab if answer.status == 200 else answer

    def may_go_on(self, run_id=7):
        return asyncio.run(self.guard.may_go_on(run_id))

    def events(self):
        return [json.loads(line) for line in self.audit.read_text().splitlines()]


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


def admitted(site, fab):
    """Whether Flower's own check would let it run: the very bytes of ``_verify_fab``."""
    if not fab.verifications.get("valid_license", ""):
        return False
    from flwr.supercore.primitives.asymmetric_ed25519 import create_message_to_sign, decode_base64url

    record = json.loads(fab.verifications[TRUSTED_NAME])
    message = create_message_to_sign(hashlib.sha256(fab.content).digest(), record["signed_at"])
    try:
        site.loopback.signer.public_key().verify(decode_base64url(record["signature"]), message)
    except InvalidSignature:
        return False
    return True


def refused(site, fab, reason):
    assert (fab.content, dict(fab.verifications)) == (b"", {})
    assert reason in site.status.get("last_refusal")["reason"], site.status.get("last_refusal")
    assert site.events()[-1]["event"] == "fab-refused"


def test_the_approved_fab_passes_with_our_verification_and_no_other(site):
    site.offer(site.release())
    site.get_run()
    fab = site.get_fab(verifications={"valid_license": "hub", "fpk_evil": "not json"})
    assert admitted(site, fab)
    assert fab.content == site.fab
    assert set(fab.verifications) == {"valid_license", TRUSTED_NAME}
    assert json.loads((site.folder / "floor.json").read_text())["version"] == 1


def test_flowers_own_supernode_check_accepts_it_and_nothing_else(site):
    """The installed flwr's ``_verify_fab`` with the file that the SuperNode is started with."""
    import yaml
    from flwr.supercore.fab import Fab
    from flwr.supernode.start_client_internal import _verify_fab

    site.offer(site.release())
    site.get_run()
    fab = site.get_fab()
    trusted = yaml.safe_load(site.loopback.trusted_entities.read_text())
    assert _verify_fab(Fab(fab.hash_str, fab.content, dict(fab.verifications)), trusted)
    assert not _verify_fab(Fab(fab.hash_str, fab.content + b"x", dict(fab.verifications)), trusted)


def test_an_unknown_fab_arrives_empty_and_is_reported(site):
    site.offer(site.release())
    evil = make_fab({**site.tree, "client/app.py": b"import os\n"})
    site.get_run(fab=evil)
    refused(site, site.get_fab(fab=evil), "is not that of release fedsec version 1")


def test_without_a_release_nothing_passes(site):
    site.offer()
    site.get_run()
    refused(site, site.get_fab(), "no release counts")


def test_without_a_revocation_list_nothing_passes(site):
    site.store.offer([site.release().encode()], b"")
    site.get_run()
    refused(site, site.get_fab(), "no revocation list")


def test_a_release_that_nobody_approved_is_none(site):
    site.offer(site.release(by_ada=False))
    site.get_run()
    refused(site, site.get_fab(), "0 approvals that count")


def test_junk_from_the_gateway_does_no_harm(site):
    site.store.offer([b"", b"{}", b"\xff" * 100, site.release(by_ada=False).encode(), site.release().encode()], site.crl())
    site.get_run()
    assert admitted(site, site.get_fab())


def test_a_release_that_an_operator_copied_counts_like_one_from_the_gateway(site):
    (site.folder / "releases" / "mine.json").write_bytes(site.release().encode())
    site.offer()
    site.get_run()
    assert admitted(site, site.get_fab())


@pytest.mark.parametrize("words", [{"fab_version": "0.1.0.aaaa/../../../tmp/x"}, {"fab_id": "../../evil/x"}, {"fab_id": "a/b"}])
def test_the_servers_words_do_not_choose_which_folder_is_loaded(site, words):
    """Ran against flwr: such a version made the loader run /tmp/x although the FAB was an approved one."""
    site.offer(site.release())
    answer = site.get_run(**words)
    from flwr.proto.run_pb2 import GetRunResponse

    run = GetRunResponse.FromString(answer.body).run
    assert (run.fab_id, run.fab_version, run.fab_hash) == ("fedsec/fedsec", "0.1.0", hashlib.sha256(site.fab).hexdigest())
    assert (run.run_id, run.series_id, run.primary_task_type, dict(run.override_config)) == (7, 7, "flwr-serverapp", {})


def test_overrides_other_kinds_of_task_and_a_foreign_state_do_not_arrive(site):
    from flwr.proto.run_pb2 import GetRunResponse, Run
    from flwr.proto.transport_pb2 import Scalar

    site.offer(site.release())
    hostile = Run(run_id=7, fab_id="fedsec/fedsec", fab_version="0.1.0", fab_hash="x", primary_task_type="flwr-agentapp", series_id=3)
    hostile.override_config["plan"].CopyFrom(Scalar(string="evil"))
    request = fleet_pb2.GetRunRequest(run_id=7).SerializeToString()
    answer = asyncio.run(site.guard.run_answer(request, Answer(200, "p", GetRunResponse(run=hostile).SerializeToString(), b"")))
    run = GetRunResponse.FromString(answer.body).run
    assert (run.primary_task_type, run.series_id, dict(run.override_config), run.fab_hash) == ("flwr-serverapp", 7, {}, "0" * 64)


def test_an_answer_about_another_run_is_none(site):
    request = fleet_pb2.GetRunRequest(run_id=7).SerializeToString()
    body = fleet_pb2.GetRunResponse(run=fleet_pb2.Run(run_id=8)).SerializeToString()
    for hostile in (body, b"", b"\xff\xff"):
        with pytest.raises(DecodeError):
            asyncio.run(site.guard.run_answer(request, Answer(200, "p", hostile, b"")))


def test_the_run_the_request_the_answer_and_the_bytes_must_agree(site):
    """Ran against flwr: the run said OLD, the FAB was NEW and admitted, and the ClientApp got OLD from the SuperNode's store."""
    site.offer(site.release())
    old = make_fab({**site.tree, "client/app.py": b"old\n"})
    sha = hashlib.sha256(old).hexdigest()
    site.get_run(fab=old)
    refused(site, site.get_fab(asked=sha), "hashes differ")
    site.get_run()
    refused(site, site.get_fab(said=sha), "hashes differ")
    refused(site, site.get_fab(run_id=99), "hashes differ")  # nobody asked about that run


@pytest.mark.parametrize("status", [404, 500, 400])
def test_a_fab_that_does_not_come_is_a_refusal_and_not_the_end_of_the_supernodes_loop(site, status):
    site.offer(site.release())
    site.get_run()
    request = fleet_pb2.GetFabRequest(run_id=7, hash_str="x").SerializeToString()
    answer = asyncio.run(site.guard.fab_answer(request, Answer(status, "text", b"no", b"")))
    assert answer.status == 200
    refused(site, fleet_pb2.GetFabResponse.FromString(answer.body).fab, f"status {status}")


@pytest.mark.parametrize("status", [403, 503])
def test_answers_that_the_supernode_understands_pass_as_they_are(site, status):
    site.get_run()
    assert site.get_fab(status=status).status == status


# --- A run that goes on ---------------------------------------------------------------------------------------------------------------------


def begun(site):
    site.offer(site.release())
    site.get_run()
    assert admitted(site, site.get_fab())
    assert site.may_go_on()
    return site


def test_a_known_run_goes_on_while_its_release_is_the_sites(site):
    begun(site)
    site.now += timedelta(days=29)
    assert site.may_go_on()
    assert site.may_go_on(run_id=8)  # unknown to the SuperNode: it will ask for the FAB


def test_a_known_run_ends_when_its_release_expires(site):
    begun(site).now += timedelta(days=31)
    assert not site.may_go_on()
    assert "expired" in site.events()[-1]["reason"]


def test_a_known_run_ends_when_its_approver_is_revoked(site):
    begun(site).revoked.append(Revocation(int(claimed_serial_number(site.ada_certificate), 16), site.now))
    assert site.offer(site.release()) == []
    assert not site.may_go_on()


def test_a_known_run_ends_when_the_revocation_list_is_withheld_for_too_long(site):
    site.store.offer([site.release().encode()], site.crl(lifetime=timedelta(hours=72)))
    site.get_run()
    assert admitted(site, site.get_fab())
    site.now += timedelta(hours=73)
    assert not site.may_go_on()


def test_a_known_run_ends_when_a_newer_release_takes_over(site):
    begun(site).offer(site.release(version=2))
    assert not site.may_go_on()
    site.guard.forget()
    site.get_run()
    assert admitted(site, site.get_fab())  # the SuperNode starts anew, and the same FAB is version 2's too


def test_code_that_changed_under_a_running_agent_ends_its_runs(site):
    begun(site)
    (site.folder / "installed/fedsec/__init__.py").write_bytes(b"CAP = 1e9\n")
    assert not site.may_go_on()
    assert "changed since this agent started" in site.events()[-1]["reason"]


# --- The floor ------------------------------------------------------------------------------------------------------------------------------


def test_the_floor_outlives_the_agent(site):
    site.offer(site.release(version=2))
    assert site.store.current().manifest.version == 2
    (site.folder / "releases" / "manifest.json").unlink()
    site.store = site.open_store()
    site.offer(site.release(version=1))
    with pytest.raises(AdmissionError, match="older than version 2"):
        site.store.current()


@pytest.mark.parametrize("text", ["", "{}", '{"version": -1, "manifest_sha256": ""}', '{"version": 1, "manifest_sha256": ""}', '{"version": true, "manifest_sha256": ""}'])  # fmt: skip
def test_a_damaged_floor_is_an_error(site, text):
    (site.folder / "floor.json").write_text(text)
    with pytest.raises(StorageError, match=r"floor\.json is damaged"):
        site.open_store()


def test_a_missing_floor_is_an_error_and_not_a_new_beginning(site):
    (site.folder / "floor.json").unlink()
    with pytest.raises(StorageError, match="reset-floor"):
        site.open_store()


def test_an_older_revocation_list_does_not_replace_a_newer_one_even_after_a_restart(site):
    older, newer = site.crl(), site.crl()
    site.store.offer([], newer)
    assert "replaced by 2" in site.store.offer([], older)[0]
    site.store = site.open_store()
    assert site.store.crl_number == 2
    assert site.store.offer([], older) != []


def test_another_list_of_the_same_number_is_refused_and_the_floor_outlives_the_list(site):
    newest, forked = site.crl(), make_crl(site.authority, [Revocation(7, site.now)], number=1, now=site.now)
    site.store.offer([], newest)
    assert "another one of number 1" in site.store.offer([], forked)[0]
    (site.folder / "crl.der").unlink()
    site.store = site.open_store()
    assert site.store.crl_number == 0
    assert site.store.offer([], forked) != []
    assert site.store.offer([], newest) == []
    assert (site.folder / "crl.der").read_bytes() == newest


def test_an_operators_copy_of_a_list_counts_at_the_start(site):
    (site.folder / "releases" / "crl.der").write_bytes(make_crl(site.authority, [Revocation(7, site.now)], number=5, now=site.now))
    site.store = site.open_store()
    assert (site.store.crl_number, site.store.is_revoked(7), site.store.is_revoked(8)) == (5, True, False)
    assert (site.folder / "crl.der").exists()


def test_a_site_without_approvers_is_refused(site):
    with pytest.raises(ConfigError, match="names no approvers"):
        site.open_store(approvers=[])


def test_an_approvers_key_is_pinned_at_first_sight_and_the_ca_cannot_replace_it(site):
    """The CA issues a certificate in ada's name to a key of its own, and approves alone."""
    site.offer(site.release(1))
    assert site.store.current().manifest.version == 1
    site.ada, real, real_certificate = Signer.generate(), site.ada, site.ada_certificate
    site.ada_certificate = site.authority.issue_admin("ada", site.ada.public_key, now=site.now - timedelta(hours=1)).certificate_der
    forged = site.release(2)
    for restart in (False, True):
        site.store = site.open_store() if restart else site.store
        site.offer(forged)
        assert site.store.current().manifest.version == 1  # the site's own release, which it kept
    assert site.store.floor.version == 1
    site.ada, site.ada_certificate = real, real_certificate
    site.offer(site.release(2))
    assert site.store.current().manifest.version == 2
    (site.folder / "approver-keys.json").write_text('{"ada": "00"}')
    with pytest.raises(StorageError, match="damaged"):
        site.open_store()


def test_a_pinned_key_of_an_approver_counts(site):
    site.store = site.open_store(keys={"ada": Signer.generate().public_key})
    site.offer(site.release())
    with pytest.raises(AdmissionError, match="another key than the one that this site pins"):
        site.store.current()


def approved_as(site, name, signer, release):
    """A further approval, in a name that the CA puts into a certificate for this key."""
    certificate = site.authority.issue_admin(name, signer.public_key, now=site.now - timedelta(hours=1)).certificate_der
    return approve(release, signer, certificate=certificate, intermediate=site.authority.intermediate_der, now=site.now)


def pinned(site):
    return json.loads((site.folder / "approver-keys.json").read_text())


def test_the_ca_cannot_approve_in_the_name_of_an_approver_who_did_not_sign_the_first_release(site):
    """ada approved the first release. The CA gives ben's name to a key of its own: nobody has seen ben's key yet."""
    site.store = site.open_store(approvers=["ada", "ben"])
    site.offer(site.release(1))
    assert site.store.current().manifest.version == 1
    assert pinned(site) == {"ada": site.ada.public_key.hex()}
    ben, forged = Signer.generate(), Signer.generate()
    site.offer(approved_as(site, "ben", forged, site.release(2, by_ada=False)))
    assert site.store.current().manifest.version == 1
    site.store = site.open_store(approvers=["ada", "ben"], keys={"ben": ben.public_key})
    site.offer(approved_as(site, "ben", forged, site.release(2, by_ada=False)))
    assert site.store.current().manifest.version == 1
    site.offer(approved_as(site, "ben", ben, site.release(2, by_ada=False)))
    assert site.store.current().manifest.version == 2


def test_an_approver_who_is_named_later_is_not_believed_at_first_sight(site):
    """The site replaces ada by ben; that is no new beginning for whoever issues certificates."""
    site.offer(site.release(1))
    assert site.store.current().manifest.version == 1
    site.store = site.open_store(approvers=["ben"])
    site.offer(approved_as(site, "ben", Signer.generate(), site.release(2, by_ada=False)))
    with pytest.raises(AdmissionError, match="no key of ben is pinned"):
        site.store.current()


def test_an_approval_that_was_not_needed_pins_nothing(site):
    """Anybody who can have ben's name certified appends an approval to ada's release: ben's real key must not be shut out by it."""
    site.store = site.open_store(approvers=["ada", "ben"])
    site.offer(approved_as(site, "ben", Signer.generate(), site.release(1)))
    assert site.store.current().approvers == ("ada", "ben")
    assert list(pinned(site)) == ["ada"]


def test_a_forged_approval_pins_nothing(site):
    site.store = site.open_store(approvers=["ada", "ben"])
    real = approved_as(site, "ben", Signer.generate(), site.release(1, by_ada=False))
    ada = site.release(1)
    broken = replace(real.approvals[0], signature=ada.approvals[0].signature)
    site.offer(Release(ada.manifest, (broken, *ada.approvals)))
    assert site.store.current().approvers == ("ada",)
    assert list(pinned(site)) == ["ada"]


def test_a_key_in_the_settings_that_is_enough_leaves_nothing_to_first_sight(site):
    site.store = site.open_store(approvers=["ada", "ben"], keys={"ada": site.ada.public_key})
    site.offer(approved_as(site, "ben", Signer.generate(), site.release(1, by_ada=False)))
    with pytest.raises(AdmissionError, match=r"no key of ben is pinned.*release\.keys"):
        site.store.current()


def test_first_sight_completes_what_the_settings_name_and_no_more(site):
    site.store = site.open_store(approvers=["ada", "ben", "cleo"], approvals=2, keys={"ada": site.ada.public_key})
    ben, cleo = Signer.generate(), Signer.generate()
    release = approved_as(site, "cleo", cleo, approved_as(site, "ben", ben, site.release(1)))
    site.offer(Release(release.manifest, tuple(reversed(release.approvals))))
    assert site.store.current().approvers == ("cleo", "ben", "ada")
    assert sorted(pinned(site)) == ["ada", "cleo"]  # the first that counted beside ada


# --- Odd releases ---------------------------------------------------------------------------------------------------------------------------


BIG_INTEGER = b'{"approvals":[],"format":"fedsec/release/v1","manifest":' + b"1" * 5000 + b"}"


def test_a_number_that_python_will_not_read_stops_neither_the_gateways_nor_the_sites_releases(site):
    site.store.offer([BIG_INTEGER, site.release().encode()], site.crl())
    (site.folder / "releases" / "x.json").write_bytes(BIG_INTEGER)
    site.get_run()
    assert admitted(site, site.get_fab())


def test_a_candidate_that_breaks_the_judge_is_skipped_with_its_reason(site, monkeypatch, caplog):
    judge = agent_releases.decode_release
    monkeypatch.setattr(agent_releases, "decode_release", lambda data: judge(data) if data != b"odd" else [].pop())
    site.store.offer([b"odd", site.release().encode()], site.crl())
    assert site.store.current().manifest.version == 1
    assert "the gateway: cannot be judged (IndexError)" in caplog.text


@pytest.mark.parametrize("junk", ["folder", "dangling link", "link to itself", "pipe", "too long", "many"])
def test_junk_in_the_folder_does_not_stop_the_sites_release(site, junk, caplog):
    folder = site.folder / "releases"
    site.offer(site.release(1))
    assert site.store.current().manifest.version == 1
    site.store = site.open_store()
    site.offer()
    path = folder / "a.json"
    if junk == "folder":
        path.mkdir()
    elif "link" in junk:
        path.symlink_to(path if junk == "link to itself" else folder / "nothing")
    elif junk == "pipe":
        os.mkfifo(path)
    elif junk == "too long":
        path.write_bytes(b"x" * (8 * 1024 * 1024 + 1))
    else:
        for number in range(65):
            (folder / f"a{number}.json").write_bytes(b"{}")
    assert site.store.current().manifest.version == 1  # from manifest.json
    site.get_run()
    assert admitted(site, site.get_fab())
    assert ("the 1 oldest are not read" if junk == "many" else "skipped a release: a.json: ") in caplog.text
    (folder / "release-2.json").write_bytes(site.release(2).encode())  # the newest file, behind all that
    assert site.store.current().manifest.version == 2


def test_floor_and_pins_are_their_owners_only(site):
    site.offer(site.release())
    site.store.current()
    modes = {name: (site.folder / name).stat().st_mode & 0o777 for name in ("floor.json", "approver-keys.json", "crl-floor.json")}
    assert set(modes.values()) == {0o600}, modes


# --- The table of runs ----------------------------------------------------------------------------------------------------------------------


def test_a_full_table_of_runs_restarts_the_supernode_and_forgets_no_run_that_it_knows(site, monkeypatch):
    """A server starts so many runs that the agent would forget the first; the SuperNode still knows its FAB, and the release has ended."""
    monkeypatch.setattr(agent_guard, "MAX_RUNS", 3)
    site.offer(site.release(days=1))
    for run_id in (7, 8, 9):
        assert site.may_go_on(run_id)
        site.get_run(run_id)
        assert admitted(site, site.get_fab(run_id))
    assert site.may_go_on(7)
    assert not site.may_go_on(10)
    assert site.events()[-1]["event"] == "supernode-restart"
    site.now += timedelta(days=2)
    assert not site.may_go_on(7)
    site.now -= timedelta(days=2)
    site.guard.forget()  # what the restart does
    assert site.may_go_on(10)
    site.get_run(10)
    assert admitted(site, site.get_fab(10))


def test_a_run_that_comes_past_a_full_table_is_refused_and_pushes_none_out(site, monkeypatch):
    monkeypatch.setattr(agent_guard, "MAX_RUNS", 1)
    begun(site)
    site.get_run(8)
    refused(site, site.get_fab(8), "as many runs")
    site.now += timedelta(days=31)
    assert not site.may_go_on(7)
