"""The server's home of a deployment: who counts as a client, who is gone, and what makes a run refuse to begin."""

import hashlib
import json
from datetime import timedelta

import pytest

from experiments.live_federation.stock import StockFederation
from fedsec.errors import CertificateError, ConfigError, FedsecError, StorageError
from fedsec.plan.load import load_plan, plan_to_toml
from fedsec.runfolder import new_run_folder
from fedsec.signing import Signer
from server.deployment import DeployedAttendance, check_deployable, check_home, deployed_weight_limit, deployed_world
from server.nodes import read_nodes
from server.setup import DEPLOYMENT, engine_of, read_setup

SETS = ["attack.name=none", "federation.num_clients=4", "secagg.num_corrupt=1", "training.batch_size=60", "federation.rounds=2"]
PLAN = load_plan(overrides=SETS)


@pytest.fixture
def made(tmp_path):
    """A home with four clients, as the gateway leaves it; no process runs."""
    federation = StockFederation(root=tmp_path, count=4)
    federation.make()
    federation.nodes = {name: 100 + number for number, name in enumerate(federation.names)}
    federation.write_nodes()
    (federation.home / "runs").mkdir()
    return federation


def world_of(made, plan=PLAN, **more):
    return deployed_world(plan, new_run_folder(made.home / "runs", plan), made.home, **more)


def test_the_clients_are_those_of_the_cas_list_and_nothing_of_them_is_looked_up(made):
    world = world_of(made)
    assert world.attendance.admitted() == {node: name for name, node in made.nodes.items()}
    assert world.attendance.gone() == {}
    assert (world.parts, world.weight_limit, world.randomness, world.simulation_dir) == (None, 60, "operating system", "")
    assert sorted(world.federation.certificates) == made.names


def test_a_revoked_client_is_gone_at_the_next_look_and_its_node_is_asked_no_more(made):
    world = world_of(made)
    made.revoke("client-0002", number=2)
    assert sorted(world.attendance.admitted().values()) == ["client-0000", "client-0001", "client-0003"]
    assert list(world.attendance.gone()) == ["client-0002"]
    assert "revoked" in world.attendance.gone()["client-0002"]


def test_an_older_revocation_list_does_not_bring_a_client_back(made):
    world = world_of(made)
    made.revoke("client-0002", number=5)
    assert world.attendance.gone()
    made.revoke(number=4)
    with pytest.raises(CertificateError):
        world.attendance.admitted()


def test_a_list_that_the_gateway_went_beyond_or_knows_with_another_content_brings_nobody_back(made):
    """Also when this process is new and has seen neither: the gateway's ``floors.json`` says it."""
    crl, floors = made.home / "federation" / "crl.der", made.home / "gateway" / "floors.json"
    world = world_of(made)
    made.revoke("client-0002", number=5)
    known = {"crl_number": 5, "roster_version": 1, "crl_sha256": hashlib.sha256(crl.read_bytes()).hexdigest()}
    floors.write_text(json.dumps(known))
    assert list(world.attendance.gone()) == ["client-0002"]
    made.revoke(number=5)
    for attendance in (world.attendance, DeployedAttendance(**{**vars(world.attendance), "newest": 0})):
        with pytest.raises(CertificateError, match="another list"):
            attendance.admitted()
    made.revoke(number=4)
    with pytest.raises(CertificateError):
        DeployedAttendance(**{**vars(world.attendance), "newest": 0}).admitted()
    floors.write_text(json.dumps({"crl_number": 4, "roster_version": 1}))  # of an earlier version
    assert len(DeployedAttendance(**{**vars(world.attendance), "newest": 0}).admitted()) == 4
    for text in ("", "[]", "{}", '{"crl_number": "4"}', '{"crl_number": true}', '{"crl_number": 4, "crl_sha256": 4}'):
        floors.write_text(text)
        with pytest.raises(StorageError, match="damaged"):
            world.attendance.admitted()


def test_without_a_revocation_list_or_with_one_that_ended_nobody_is_admitted(made):
    world = world_of(made)
    later = world_of(made)
    later.attendance.now = lambda: made.now + timedelta(hours=73)
    with pytest.raises(CertificateError, match="ended"):
        later.attendance.admitted()
    (made.home / "federation" / "crl.der").unlink()
    with pytest.raises(StorageError, match=r"crl\.der"):
        world.attendance.admitted()


def test_a_node_with_another_key_than_the_list_has_is_nobodys(made):
    made.certificates["client-0001"] = (
        made.certificates["client-0001"][0],
        made.certificates["client-0001"][1][:-1] + bytes([made.certificates["client-0001"][1][-1] ^ 1]),
    )
    made.write_nodes()
    assert "client-0001" not in world_of(made).attendance.admitted().values()


def test_a_node_whose_certificate_is_for_a_stranger_is_nobodys(made):
    made.write_nodes(**{"client-0001": "stranger"})
    assert sorted(world_of(made).attendance.admitted().values()) == ["client-0000", "client-0002", "client-0003"]


def test_one_client_on_two_nodes_is_a_damaged_file(made):
    made.write_nodes(**{"client-0001": "client-0000"})
    with pytest.raises(StorageError, match="two nodes"):
        world_of(made)


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", '{"format":"fedsec/nodes/v2","nodes":{}}', '{"format":"fedsec/nodes/v1","nodes":[]}',
     '{"format":"fedsec/nodes/v1","nodes":{"x":{}}}', '{"format":"fedsec/nodes/v1","nodes":{"1":{"client_id":"a"}}}',
     '{"format":"fedsec/nodes/v1","nodes":{"1":{"client_id":"a","public_key":"00","serial_number":"1"}}}',
     '{"format":"fedsec/nodes/v1","nodes":{"1":{"client_id":5,"public_key":"' + "02" * 33 + '","serial_number":"1"}}}',
     '{"format":"fedsec/nodes/v1","nodes":{"1":{"client_id":"a","public_key":"' + "02" * 33 + '","serial_number":"-1"}}}'],
)  # fmt: skip
def test_a_damaged_file_of_nodes_is_refused(tmp_path, text):
    (tmp_path / "nodes.json").write_text(text)
    with pytest.raises(StorageError, match="damaged"):
        read_nodes(tmp_path / "nodes.json")


def test_one_key_on_two_nodes_is_a_damaged_file(tmp_path):
    entry = {"public_key": "02" * 33, "serial_number": "1"}
    nodes = {"1": {"client_id": "a", **entry}, "2": {"client_id": "b", **entry}}
    (tmp_path / "nodes.json").write_text(json.dumps({"format": "fedsec/nodes/v1", "nodes": nodes}))
    with pytest.raises(StorageError, match="two nodes"):
        read_nodes(tmp_path / "nodes.json")


def test_no_file_of_nodes_means_that_nobody_came_yet(tmp_path):
    assert read_nodes(tmp_path / "nodes.json") == {}


def test_a_list_that_the_ca_did_not_sign_is_refused(made):
    path = made.home / "federation" / "roster.json"
    value = json.loads(path.read_text())
    value["cohort_seed"] = "00" * 32  # the server would like to choose the cohorts
    path.write_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())
    with pytest.raises(FedsecError, match="does not verify"):
        world_of(made)


def test_a_list_that_names_another_server_is_refused(made):
    made._server = (Signer.generate().public_key, made._server[1])
    made.list(*made.names)
    with pytest.raises(CertificateError, match="names another server"):
        world_of(made)


def test_a_certificate_of_another_client_in_a_members_place_is_refused(made):
    folder = made.home / "federation" / "certificates"
    (folder / "client-0001.der").write_bytes((folder / "client-0002.der").read_bytes())
    with pytest.raises(CertificateError, match="client-0001 on the CA's list"):
        world_of(made)


def test_a_member_whose_certificate_ended_is_named_with_the_mend(made):
    with pytest.raises(CertificateError, match=r"client-0000 on the CA's list.*must renew"):
        world_of(made, now=lambda: made.now + timedelta(hours=72, minutes=1))


def test_a_home_with_a_clients_identity_is_no_servers(made):
    import shutil

    shutil.rmtree(made.home / "identity")
    shutil.copytree(made.root / "client-0000" / "identity", made.home / "identity")
    with pytest.raises(CertificateError, match="server certificate"):
        world_of(made)


def test_a_plan_for_another_number_of_clients_does_not_begin_but_a_begun_run_goes_on_with_fewer(made):
    with pytest.raises(ConfigError, match="the CA's list has 4 clients"):
        check_home(load_plan(overrides=[*SETS, "federation.num_clients=5"]), made.home)
    check_home(PLAN, made.home)
    made.revoke("client-0003", number=2)
    with pytest.raises(ConfigError, match="3 clients that are not revoked, the plan 4"):
        check_home(PLAN, made.home)
    folder = new_run_folder(made.home / "runs", PLAN)
    folder.checkpoints.mkdir()
    assert list(deployed_world(PLAN, folder, made.home).attendance.gone()) == ["client-0003"]


@pytest.mark.parametrize(
    ("key", "field"),
    [
        ("attack.name=sign-flip", "attack.name"),
        ("federation.dropout=0.1", "federation.dropout"),
        ("training.batch_size=uniform", "training.batch_size"),
    ],
)
def test_what_only_a_simulation_can_do_is_refused_with_the_key(key, field):
    with pytest.raises(ConfigError, match=field):
        check_deployable(load_plan(overrides=[*SETS, key]))


def test_clients_may_give_their_own_batch_sizes_up_to_a_limit_that_the_plan_states():
    assert deployed_weight_limit(load_plan(overrides=[*SETS, "training.batch_size=uniform", "secagg.weight_limit=99"])) == 99


# --- The CA's next list ---------------------------------------------------------------------------------------------------------


def test_after_a_revocation_the_run_goes_over_to_the_cas_next_list(made):
    world = world_of(made, load_plan(overrides=[*SETS, "secagg.enabled=false"]))
    assert world.newer() is None  # nothing changed
    made.revoke("client-0002", number=2)
    assert world.newer() is None  # revoked, and the CA's list still has it
    made.list("client-0000", "client-0001", "client-0003")
    newer = world.newer()
    assert sorted(newer.certificates) == ["client-0000", "client-0001", "client-0003"]
    assert newer.verified.roster.version == world.federation.verified.roster.version + 1
    assert list(world.attendance.gone()) == ["client-0002"]  # still shown as gone
    assert "client-0002" not in world.attendance.admitted().values()
    assert world.newer() is None  # once


def test_a_next_list_with_too_few_clients_for_the_plans_secure_aggregation_is_left_alone(made):
    """Three with one corrupt cannot finish a round: the run keeps its list of four, of whom one is silent."""
    world = world_of(made)
    made.revoke("client-0002", number=2)
    made.list("client-0000", "client-0001", "client-0003")
    assert world.newer() is None
    assert list(world.attendance.gone()) == ["client-0002"]
    assert sorted(world.attendance.admitted().values()) == ["client-0000", "client-0001", "client-0003"]


def test_a_next_list_that_is_being_written_is_waited_for_and_one_that_is_older_never_taken(made):
    world = world_of(made, load_plan(overrides=[*SETS, "secagg.enabled=false"]))
    made.revoke("client-0002", number=2)
    old = {name: (made.home / "federation" / name).read_bytes() for name in ("roster.json", "roster.signature")}
    made.list("client-0000", "client-0001", "client-0003")
    whole = (made.home / "federation" / "roster.signature").read_bytes()
    (made.home / "federation" / "roster.signature").write_bytes(old["roster.signature"])
    assert world.newer() is None
    (made.home / "federation" / "roster.signature").write_bytes(whole)
    assert world.newer() is not None
    for name, data in old.items():
        (made.home / "federation" / name).write_bytes(data)
    assert world.newer() is None


def test_a_next_list_with_more_clients_than_the_plan_is_for_ends_the_run(made):
    plan = load_plan(overrides=[*SETS, "federation.num_clients=4"])
    world = world_of(made, plan)
    issued, key = made.certificates["client-0000"]
    from fedsec.signing import Signer

    signer = Signer.generate()
    more = made.authority.issue_node("client-0009", signer.public_key, site="loopback", now=made.now)
    made.certificates["client-0009"] = (more, signer.public_key)
    (made.home / "federation" / "certificates" / "client-0009.der").write_bytes(more.certificate_der)
    made.list(*made.names, "client-0009")
    assert issued
    assert key
    with pytest.raises(ConfigError, match="the CA's list has 5"):
        world.newer()


# --- Which engine, and which folder ---------------------------------------------------------------------------------------------


def test_the_engine_is_said_by_the_run_config_or_by_the_home_and_never_guessed(tmp_path):
    assert engine_of({}, tmp_path) == "flower"
    (tmp_path / "federation").mkdir()
    assert engine_of({}, tmp_path) == DEPLOYMENT
    assert engine_of({"engine": "local"}, tmp_path) == "local"
    with pytest.raises(ConfigError, match="engine"):
        engine_of({"engine": "deploymemt"}, tmp_path)


def bound(made, **changes):
    from fedsec.files import sha256_file

    folder = new_run_folder(made.home / "runs", PLAN)
    plan = folder.path / "plan.toml"
    return {"plan": str(plan), "plan-sha256": sha256_file(plan), "run-dir": str(folder.path), "engine": DEPLOYMENT, **changes}


def test_a_deployment_is_bound_to_its_plan_and_keeps_to_the_servers_home(made, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSEC_HOME", str(made.home))
    assert read_setup(bound(made)).engine == DEPLOYMENT
    for changes in ({"plan-sha256": ""}, {"plan": ""}, {"plan-sha256": "00" * 32}, {"run-dir": str(tmp_path / "elsewhere")},
                    {"run-dir": str(made.home / "runs" / ".." / "identity" / "x")}):  # fmt: skip
        with pytest.raises(ConfigError):
            read_setup(bound(made, **changes))
    assert not (tmp_path / "elsewhere").exists()


def test_a_server_host_runs_no_plan_and_no_engine_that_a_local_user_names(made, tmp_path, monkeypatch):
    """The Control API takes any run config: the installed app with another's plan would load what that plan names."""
    from fedsec.files import sha256_file

    monkeypatch.setenv("FEDSEC_HOME", str(made.home))
    monkeypatch.setenv("FEDSEC_SERVER_HOST", "1")
    assert read_setup(bound(made)).engine == DEPLOYMENT
    mine = tmp_path / "plan.toml"
    mine.write_text(plan_to_toml(PLAN))
    for changes in ({"plan": str(mine), "plan-sha256": sha256_file(mine)}, {"engine": "local"}, {"engine": "local", "run-dir": str(tmp_path / "x")},
                    {"run-dir": ""}, {"run-dir": str(tmp_path / "x")}):  # fmt: skip
        with pytest.raises(ConfigError, match="fedsec run"):
            read_setup(bound(made, **changes))
    assert not (tmp_path / "x").exists()
