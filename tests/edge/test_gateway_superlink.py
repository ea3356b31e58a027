"""``fedsec server up`` with the stock SuperLink, SuperExec and a ServerApp that runs: what Flower lets pass and the gateway does not.

One set of processes for the module; the last story kills the SuperLink.
"""

import asyncio
import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from flwr.cli.build import build_fab_from_disk
from flwr.proto import control_pb2, fab_pb2, heartbeat_pb2, message_pb2
from flwr.proto import fleet_pb2 as flower_fleet_pb2
from gateway_lab import Lab, LabAgent, flower_headers, message_ids, now, refused, until

from fedsec.edge import fleet_pb2, paths
from fedsec.edge.edge_client import send_call
from fedsec.edge.fleet_calls import flower_public_key
from fedsec.edge.registration import read_nodes
from fedsec.edge.serverapp import REFUSALS
from fedsec.edge.signing import Call, prove_call

CODE = grpc.StatusCode

APP = """
import time
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

Path("FOLDER", "loaded").touch()
app = ServerApp()

@app.main()
def main(grid, context):
    # Ask each node once, as soon as it is there; end when told to.
    here, asked = Path(context.run_config["folder"]), set()
    (here / "running").touch()
    while not (here / "end").exists():
        for node in set(grid.get_node_ids()) - asked:
            content = RecordDict({"question": ConfigRecord({"n": 1})})
            grid.push_messages([Message(content=content, dst_node_id=node, message_type="query", ttl=600.0)])
            asked.add(node)
        time.sleep(0.2)
"""

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "waiting"
version = "1.0.0"
license = { file = "LICENSE" }
dependencies = ["flwr>=1.41"]
[tool.flwr.app]
publisher = "test"
fab-format-version = 1
flwr-version-target = "1.41.0"
[tool.flwr.app.components]
serverapp = "waiting:app"
clientapp = "waiting:app"
[tool.flwr.app.config]
folder = "FOLDER"
"""


class Host:
    """``fedsec server up`` as a process, and the run that runs on it."""

    def __init__(self, folder):
        self.lab = Lab(folder)
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fedsec", "server", "up", "--home", str(self.lab.home)],
            stdout=(folder / "up.log").open("wb"),
            stderr=subprocess.STDOUT,
            env={**os.environ, "https_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"},
        )

    def wait_up(self):
        nodes = self.lab.home / "gateway" / "nodes.json"
        wait_for(lambda: nodes.exists() and len(read_nodes(nodes)) == 2, 60)
        self.ids = {member.client_id: node_id for node_id, member in read_nodes(nodes).items()}

    def pids(self):
        found = json.loads((self.lab.home / "superlink" / "processes.json").read_text())["processes"]
        return {name: entry["pid"] for name, entry in found.items()}

    def post(self, path, message, headers=None):
        """To the SuperLink itself, past the gateway: status and body."""
        tls = ssl.create_default_context(cafile=self.lab.home / "superlink" / "ca.pem")
        connection = http.client.HTTPSConnection("127.0.0.1", self.lab.superlink_port, context=tls, timeout=20)
        extra = {}
        if headers is not None:
            extra = {"flwr-public-key": headers.public_key, "flwr-timestamp": headers.timestamp, "flwr-signature": headers.signature}
        connection.request("POST", path, message.SerializeToString(), {"content-type": "application/protobuf", **extra})
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, body

    def submit(self):
        """An app of somebody's own, past ``fedsec run``: Flower takes it from every local user."""
        app = self.folder / "app"
        app.mkdir(exist_ok=True)
        (app / "pyproject.toml").write_text(PYPROJECT.replace("FOLDER", str(self.folder)))
        (app / "LICENSE").write_text("none")
        (app / "waiting.py").write_text(APP.replace("FOLDER", str(self.folder)))
        fab = build_fab_from_disk(app)
        import hashlib

        request = control_pb2.StartRunRequest(fab=fab_pb2.Fab(hash_str=hashlib.sha256(fab).hexdigest(), content=fab))
        status, body = self.post("/v1/control/start-run", request)
        assert status == 200, body
        return control_pb2.StartRunResponse.FromString(body).run_id

    def start_run(self):
        """The stories below need an app that does as they say, so the guard in front of Flower's command is taken away."""
        guarded = self.lab.home / "superlink" / "commands" / "flwr-serverapp"
        guarded.unlink()
        guarded.symlink_to(Path(sys.executable).with_name("flwr-serverapp"))
        self.run_id = self.submit()
        wait_for((self.folder / "running").exists, 60)

    def agent(self, name):
        return LabAgent(self.lab, name)


def wait_for(check, timeout_s):
    end = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.1)


def descendants_of(marker):
    found = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in found.splitlines() if marker in line and "pytest" not in line and " ps " not in line]


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    folder = tmp_path_factory.mktemp("host")
    host = Host(folder)
    try:
        host.wait_up()
        asyncio.run(activate(host))
        host.refused_run = host.submit()
        wait_for((host.lab.home / "superlink" / REFUSALS).exists, 60)
        host.refused_left = sorted(path.name for path in folder.iterdir())
        host.start_run()
        yield host
    finally:
        (folder / "end").touch()
        began = time.monotonic()
        host.process.send_signal(signal.SIGTERM)
        try:
            host.process.wait(15)
        finally:
            host.process.kill()
        assert time.monotonic() - began < 15
        assert descendants_of(str(host.lab.home)) == []


async def activate(host):
    for name in ("node-a", "node-b"):
        async with host.agent(name) as agent:
            request = flower_fleet_pb2.ActivateNodeRequest(
                public_key=flower_public_key(agent.party.signer.public_key), heartbeat_interval=300.0
            )
            answer = await agent.call(paths.ACTIVATE_NODE, request)
            assert flower_fleet_pb2.ActivateNodeResponse.FromString(answer.body).node_id == host.ids[name]


def heartbeat(node_id):
    return heartbeat_pb2.SendNodeHeartbeatRequest(node={"node_id": node_id}, heartbeat_interval=300.0)


def command(host, victim, attacker):
    """A message that says it is the ServerApp's."""
    metadata = message_pb2.Metadata(
        run_id=host.run_id,
        message_id="f" * 64,
        src_node_id=1,
        dst_node_id=victim,
        group_id="",
        ttl=600.0,
        message_type="query",
        created_at=time.time(),
    )
    return flower_fleet_pb2.PushMessagesRequest(
        node={"node_id": attacker},
        messages_list=[message_pb2.Message(metadata=metadata, content={})],
        message_object_trees=[message_pb2.ObjectTree(object_id="f" * 64)],
    )


def test_the_servers_environment_and_addresses_are_closed(host):
    """Proxies that were set here did no harm; the SuperLink is bound to loopback only."""
    environment = Path(f"/proc/{host.pids()['superlink']}/environ").read_bytes().split(b"\0")
    assert not any(entry.lower().startswith(b"https_proxy=") for entry in environment)
    assert b"FLWR_TELEMETRY_ENABLED=0" in environment
    superexec = Path(f"/proc/{host.pids()['superexec']}/environ")
    if os.geteuid():
        with pytest.raises(PermissionError):  # it has the server's key in reach: nobody but root looks into it
            superexec.read_bytes()
    else:
        assert f"FEDSEC_HOME={host.lab.home}".encode() in superexec.read_bytes()
    listening = {line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if line.split()[3] == "0A"}
    assert f"0100007F:{host.lab.superlink_port:04X}" in listening
    assert f"00000000:{host.lab.superlink_port:04X}" not in listening


def test_an_app_that_a_local_user_submitted_is_refused_before_a_line_of_it_runs(host):
    """The Control API took it, as Flower does; SuperExec started the command; the command loaded nothing of it and the run failed."""
    assert "loaded" not in host.refused_left
    assert "running" not in host.refused_left
    said = json.loads((host.lab.home / "superlink" / REFUSALS).read_text().splitlines()[0])
    assert "refused to run an app that is not the installed one" in said["reason"]
    status, body = host.post("/v1/control/list-runs", control_pb2.ListRunsRequest(run_id=host.refused_run))
    assert status == 200
    run = control_pb2.ListRunsResponse.FromString(body).run_dict[host.refused_run]
    assert (run.status.status, run.status.sub_status) == ("finished", "failed")
    assert "this host runs the installed app only" in run.status.details


def test_without_the_secret_nobody_gets_a_task(host):
    from flwr.proto import runtime_pb2

    status, _ = host.post("/v1/runtime/acquire-task", runtime_pb2.AcquireTaskRequest(supported_task_types=["flwr-serverapp"]))
    assert status in (401, 403)


def test_captured_headers_work_at_flower_with_any_body_and_not_here(host):
    async def story():
        async with host.agent("node-b") as agent:
            mine = host.ids["node-b"]
            headers = agent.headers()
            assert (await agent.call(paths.SEND_NODE_HEARTBEAT, heartbeat(mine), headers=headers)).status == 200
            # At the SuperLink the captured headers go with any call, and again.
            other = flower_fleet_pb2.PullMessagesRequest(node={"node_id": mine}, message_ids=["x"])
            for _ in range(2):
                status, _ = host.post(paths.SEND_NODE_HEARTBEAT, heartbeat(mine), headers)
                assert status == 200
            status, _ = host.post(paths.GET_RUN, fleet_pb2.GetRunRequest(node=fleet_pb2.Node(node_id=mine), run_id=host.run_id), headers)
            assert status == 200
            # At the gateway a captured call is worth nothing.
            body = heartbeat(mine).SerializeToString()
            import hashlib

            call = Call(
                agent.session._session_id, next(agent.session._counter), paths.SEND_NODE_HEARTBEAT, b"", headers.public_key,
                headers.timestamp, headers.signature, len(body), hashlib.sha256(body).digest(),
            )  # fmt: skip
            keys = agent.session._keys
            assert (await send_call(agent.stub, call, keys, body)).status == 200
            with refused(CODE.FAILED_PRECONDITION, "counter"):
                await send_call(agent.stub, call, keys, body)
            evil = other.SerializeToString()
            forged = Call(**{**vars(call), "counter": call.counter + 1, "path": paths.PULL_MESSAGES, "body_size": len(evil),
                             "body_sha256": hashlib.sha256(evil).digest()})  # fmt: skip
            with refused(CODE.PERMISSION_DENIED, "signature"):
                await send_call(agent.stub, forged, keys, evil, proof=prove_call(keys, call))

    asyncio.run(story())


def test_a_real_message_is_served_again_after_the_gateway_was_killed(host):
    """The ServerApp's question to node-a: pulled, the gateway killed before the node confirmed, served again, then confirmed."""

    async def story():
        mine = host.ids["node-a"]
        async with host.agent("node-a") as agent:
            first = await agent.pull(mine, timeout_s=40)
            assert len(message_ids(first)) == 1
        before = host.pids()["gateway"]
        os.kill(before, signal.SIGKILL)
        await until(lambda: host.pids()["gateway"] not in (None, before), timeout_s=20)
        async with await comes_back(host, "node-a") as agent:
            again = await agent.pull(mine, timeout_s=40)
            assert (message_ids(again), again.delivery) == (message_ids(first), first.delivery)
            (message_id,) = message_ids(again)
            request = message_pb2.PullObjectRequest(node={"node_id": mine}, run_id=host.run_id, object_id=message_id)
            pulled = await agent.call(paths.PULL_OBJECT, request, received_pull=again.delivery)
            assert message_pb2.PullObjectResponse.FromString(pulled.body).object_available
            await until(lambda: list((host.lab.home / "gateway" / "spool").iterdir()) == [])

    asyncio.run(story())


async def comes_back(host, name, timeout_s=30.0):
    """An agent whose Hello and heartbeat are answered again; on the way there only outages, never 401."""
    end = time.monotonic() + timeout_s
    while True:
        agent = host.agent(name)
        try:
            await agent.hello()
            await agent.call(paths.SEND_NODE_HEARTBEAT, heartbeat(host.ids[name]))
        except grpc.aio.AioRpcError as error:
            await agent.channel.close()
            if error.code() is not CODE.UNAVAILABLE or time.monotonic() > end:
                raise
            await asyncio.sleep(0.3)
        else:
            return agent


def test_any_node_can_command_another_at_flower_and_not_here(host):
    victim, attacker = host.ids["node-a"], host.ids["node-b"]
    evil = command(host, victim, attacker)

    async def refused_here():
        async with host.agent("node-b") as agent:
            with refused(CODE.PERMISSION_DENIED, "message"):
                await agent.call(paths.PUSH_MESSAGES, evil)

    asyncio.run(refused_here())
    signer = host.lab.nodes["node-b"].signer
    status, body = host.post(paths.PUSH_MESSAGES, evil, flower_headers(signer, now()))
    assert status == 200
    assert flower_fleet_pb2.PushMessagesResponse.FromString(body).results == {"f" * 64: 0}
    victims = flower_headers(host.lab.nodes["node-a"].signer, now())
    status, body = host.post(paths.PULL_MESSAGES, flower_fleet_pb2.PullMessagesRequest(node={"node_id": victim}), victims)
    (stored,) = flower_fleet_pb2.PullMessagesResponse.FromString(body).messages_list
    assert (stored.metadata.message_id, stored.metadata.src_node_id, stored.metadata.dst_node_id) == ("f" * 64, 1, victim)


def test_neither_registering_nor_control_passes_the_gateway(host):
    async def story():
        async with host.agent("node-b") as agent:
            for path, request in (
                ("/v1/fleet/register-node", flower_fleet_pb2.RegisterNodeFleetRequest(public_key=b"x")),
                ("/v1/fleet/unregister-node", flower_fleet_pb2.UnregisterNodeFleetRequest(node_id=host.ids["node-b"])),
                ("/v1/control/list-nodes", control_pb2.ListNodesRequest()),
                ("/v1/control/start-run", control_pb2.StartRunRequest()),
            ):
                with refused(CODE.PERMISSION_DENIED, "path"):
                    await agent.call(path, request)

    asyncio.run(story())
    status, _ = host.post("/v1/control/list-nodes", control_pb2.ListNodesRequest())
    assert status == 200  # on loopback it is open to every local user, and the threat model says so


def test_status_tells_what_runs(host):
    done = subprocess.run(
        [sys.executable, "-m", "fedsec", "server", "status", "--home", str(host.lab.home), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    facts = json.loads(done.stdout)
    assert facts["healthy"]
    assert facts["ports"] == {"gateway": True, "superlink": True}
    assert sorted(facts["nodes"].values()) == ["node-a", "node-b"]


def test_a_second_server_on_the_same_folder_is_refused(host):
    done = subprocess.run(
        [sys.executable, "-m", "fedsec", "server", "up", "--home", str(host.lab.home)],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1
    assert "server host" in done.stderr


def test_a_killed_superlink_is_an_outage_and_its_nodes_keep_their_ids(host):
    """SIGKILL: calls get 503, never 401; it is started again on the same database."""

    async def story():
        before = host.pids()["superlink"]
        async with host.agent("node-a") as agent:
            os.kill(before, signal.SIGKILL)
            with refused(CODE.UNAVAILABLE):
                await agent.call(paths.SEND_NODE_HEARTBEAT, heartbeat(host.ids["node-a"]))
        async with await comes_back(host, "node-a"):
            pass
        assert host.pids()["superlink"] not in (None, before)

    asyncio.run(story())
    nodes = read_nodes(host.lab.home / "gateway" / "nodes.json")
    assert {member.client_id: node_id for node_id, member in nodes.items()} == host.ids
