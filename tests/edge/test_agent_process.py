"""An agent as a process, with the stock ``flower-supernode`` and ``flower-superexec``, over a real gateway; only the SuperLink is a stand-in.

The installation is a copy, with a release of exactly that copy, built and signed by the command line.
"""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from agent_lab import (
    ROOT,
    AgentProcess,
    admin_identity,
    alive,
    children_of,
    client_home_of,
    copy_installation,
    fedsec,
    python_environment,
)
from gateway_lab import FEDERATION, FakeSuperLink, Lab, until

from fedsec.edge import fleet_pb2, paths


@pytest.fixture(scope="module")
def installation(tmp_path_factory):
    return copy_installation(tmp_path_factory.mktemp("installation"))


@pytest.fixture(scope="module")
def world(tmp_path_factory, installation):
    """A federation with an approved release of the installation."""
    folder = tmp_path_factory.mktemp("world")
    lab = Lab(folder, ("node-a", "node-b"), toml="hold_s = 3.0\nrefresh_s = 0.2\n")
    admin_identity(lab, folder / "ada", "ada")
    fedsec(installation, "release", "build", "--federation", FEDERATION, "--version", "1", "--out", folder / "release.json", cwd=folder)
    fedsec(installation, "release", "sign", folder / "release.json", "--identity", folder / "ada", "--yes", cwd=folder)
    (lab.home / "releases").mkdir(exist_ok=True)
    shutil.copy(folder / "release.json", lab.home / "releases")
    lab.fab = (folder / "release.fab").read_bytes()
    return lab


def superlink(world, name):
    fake = FakeSuperLink(world)

    def activate(_body, _headers):
        return 200, fleet_pb2.ActivateNodeResponse(node_id=fake.node_id(name)).SerializeToString()

    fake.answers[paths.ACTIVATE_NODE] = activate
    return fake


def called(fake, path):
    return sum(found == path for found, _ in fake.calls)


def run(work):
    asyncio.run(asyncio.wait_for(work, 100))


async def is_up(agent, fake, seconds=60):
    try:
        await until(lambda: called(fake, paths.PULL_MESSAGES) and (agent.status().get("node") or {}).get("superexec_pid"), seconds)
    except AssertionError:
        raise AssertionError(agent.said()) from None


def test_an_agent_starts_its_node_and_a_sigkill_leaves_no_child(world, installation, tmp_path):
    async def story():
        home = client_home_of(world, "node-a", tmp_path / "client")
        with superlink(world, "node-a") as fake:
            async with world.gateway():
                with AgentProcess(home, installation) as agent:
                    await is_up(agent, fake)
                    family = children_of(agent.process.pid)
                    assert len(family) >= 3  # SuperNode, SuperExec, fork server
                    await until(lambda: (agent.status().get("release") or {}).get("version") == 1)
                    assert agent.status()["release"]["approvers"] == ["ada"]
                    commands = [command_line(pid) for pid in family]
                    node = next(line for line in commands if "flower-supernode" in line)
                    assert "--isolation process" in node
                    assert "--trusted-entities" in node
                    assert "127.0.0.1" in node
                    second = await asyncio.to_thread(second_agent, home, installation)
                    assert second.returncode == 1
                    assert "another process holds" in second.stderr
                    await loses_its_supernode(agent, fake)
                    family = children_of(agent.process.pid)
                    agent.process.send_signal(signal.SIGKILL)
                    await until(lambda: not [pid for pid in family if alive(pid)], 5)

    run(story())


async def loses_its_supernode(agent, fake):
    """SIGKILL: the server is told at once that the node is gone, and a new SuperNode takes its place."""
    before = agent.status()["node"]["supernode_pid"]
    os.kill(before, signal.SIGKILL)
    try:
        await until(lambda: called(fake, paths.DEACTIVATE_NODE), 10)
        await until(lambda: (agent.status()["node"] or {}).get("supernode_pid") not in (before, None), 30)
        await until(lambda: called(fake, paths.ACTIVATE_NODE) == 2, 30)
        await until(lambda: agent.status()["node"]["superexec_pid"], 30)
    except AssertionError:
        raise AssertionError(agent.said()) from None


def command_line(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def second_agent(home, installation):
    command = [sys.executable, "-P", "-m", "fedsec.edge.agent", "--home", str(home)]
    return subprocess.run(command, env=python_environment(installation), capture_output=True, text=True, timeout=60, check=False)


def test_an_unknown_fab_is_refused_told_to_the_server_and_shown_and_a_revoked_node_is_stopped(world, installation, tmp_path):
    """The SuperLink sends a message of a run with another FAB: the SuperNode answers with error 7 and nothing of it runs."""
    pushed = []

    async def story():
        home = client_home_of(world, "node-b", tmp_path / "client")
        with superlink(world, "node-b") as fake:
            arrange_run(fake, world.fab[:-1] + b"!", pushed)
            async with world.gateway():
                with AgentProcess(home, installation) as agent:
                    await is_up(agent, fake)
                    fake.inbox[fake.node_id("node-b")].append(message_for(fake.node_id("node-b")))
                    try:
                        await until(lambda: agent.status().get("last_refusal"), 30)
                        await until(lambda: pushed, 30)
                    except AssertionError:
                        raise AssertionError(agent.said()) from None
                    assert "is not that of release fedsec version 1" in agent.status()["last_refusal"]["reason"]
                    assert b"The FAB could not be verified." in pushed[0]  # ErrorCode.INVALID_FAB, 7
                    report = await asyncio.to_thread(client_status, home)
                    assert (report["state"], report["refusals"]) == ("connected", 1)
                    assert report["privacy"] == {"epsilon_cap": 8.0, "delta": 1e-5, "epsilon_spent": 0.0, "rounds": 0}
                    lines = [json.loads(line) for line in (home / "audit.jsonl").read_text().splitlines()]
                    assert [line["event"] for line in lines].count("fab-refused") == 1
                    world.revoke("node-b")
                    await until(lambda: agent.status().get("state") == "unauthorised", 10)
                    await until(lambda: agent.status()["node"]["supernode_pid"] is None, 10)
                    family = children_of(agent.process.pid)
                    agent.process.send_signal(signal.SIGTERM)
                    assert await asyncio.to_thread(agent.process.wait, 10) == 0
                    assert not [pid for pid in family if alive(pid)]
                    assert not (home / "loopback").exists()

    run(story())


def client_status(home):
    command = [sys.executable, "-m", "fedsec", "client", "status", "--home", str(home), "--json"]
    return json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False).stdout)


def message_for(node_id):
    """A train message of run 7 in Flower's own form, without its objects: the SuperNode asks for run and FAB first."""
    from flwr.app import Message, RecordDict
    from flwr.common.serde import message_to_proto
    from flwr.proto.fleet_pb2 import PullMessagesResponse
    from flwr.supercore.inflatable.inflatable_object import get_object_tree
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 7, 1, 1
    message = Message(content=RecordDict(), dst_node_id=node_id, message_type="train")
    message.metadata.__dict__["_run_id"] = 7
    message.metadata.__dict__["_src_node_id"] = 1
    message.metadata.__dict__["_message_id"] = message.object_id
    return PullMessagesResponse(
        messages_list=[message_to_proto(message)], message_object_trees=[get_object_tree(message)]
    ).SerializeToString()


def arrange_run(fake, fab, pushed):
    import hashlib

    sha = hashlib.sha256(fab).hexdigest()
    run_words = fleet_pb2.Run(run_id=7, fab_id="fedsec/fedsec", fab_version="0.1.0", fab_hash=sha)
    fake.answers[paths.GET_RUN] = (200, fleet_pb2.GetRunResponse(run=run_words).SerializeToString())
    fake.answers[paths.GET_FAB] = (200, fleet_pb2.GetFabResponse(fab=fleet_pb2.Fab(hash_str=sha, content=fab)).SerializeToString())

    def push(body, _headers):
        pushed.append(body)
        return 200, b""

    fake.answers[paths.PUSH_MESSAGES] = push
