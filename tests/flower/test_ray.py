"""The Ray engine, with apps that are made inside functions: Ray's processes cannot import test modules."""

import importlib.util
import os
import time
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedsec.errors import ConfigError
from fedsec.flower import leftovers
from fedsec.flower.local import run_local
from fedsec.flower.ray import run_ray


def summing_apps(seen: list) -> tuple[ServerApp, ClientApp]:
    """Clients add their partition, in double precision and in their own order of arrival; one of them fails in round 2."""
    server, client = ServerApp(), ClientApp()

    @client.train()
    def train(message, context):
        import sys

        import torch
        from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

        partition = context.node_config["partition-id"]
        calls = context.state["n"]["n"] + 1 if "n" in context.state else 1
        context.state["n"] = ConfigRecord({"n": calls})
        print("a client prints")  # noqa: T201 - must not reach our stdout
        if message.metadata.group_id == "2" and partition == 1:
            raise ZeroDivisionError("division by zero")
        if message.metadata.group_id == "2" and partition == 2:
            sys.exit(3)
        array = message.content["m"]["w"].numpy() + partition * context.run_config["scale"]
        about = {"p": partition, "of": context.node_config["num-partitions"], "n": calls, "threads": torch.get_num_threads()}
        return Message(RecordDict({"m": ArrayRecord({"w": Array(array)}), "c": ConfigRecord(about)}), reply_to=message)

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        nodes = list(grid.get_node_ids())
        total = np.zeros(500)
        for group_id in ("1", "2", "3"):
            record = ArrayRecord({"w": Array(total)})
            replies = grid.send_and_receive(
                [Message(RecordDict({"m": record}), dst_node_id=node, message_type="train", group_id=group_id) for node in nodes]
            )
            good = sorted((m for m in replies if m.has_content()), key=lambda m: m.content["c"]["p"])
            total = sum(m.content["m"]["w"].numpy() for m in good)
            seen.append([dict(m.content["c"]) for m in good])
            seen.append(sorted((m.error.code, m.error.reason) for m in replies if m.has_error()))
        seen.extend([total.tolist(), context.run_config, dict(context.node_config), len(nodes)])

    return server, client


@pytest.fixture
def nothing_left(monkeypatch: pytest.MonkeyPatch):
    """No process, no file and no changed environment stays behind. The folder is short, as Ray's sockets need."""
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    before, variables = leftovers.descendants(os.getpid()), dict(os.environ)
    yield
    assert leftovers.descendants(os.getpid()) <= before
    assert list(folder.iterdir()) == []
    ours = {
        "PYTHONPATH",
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "RAY_USAGE_STATS_ENABLED",
        "RAY_DEDUP_LOGS",
    }  # Ray's import sets some of its own
    assert {key: os.environ.get(key) for key in ours} == {key: variables.get(key) for key in ours}
    folder.rmdir()


@pytest.mark.needs("ray")
def test_both_engines_give_the_same_and_nothing_is_left(nothing_left: None, capfd: pytest.CaptureFixture[str]) -> None:
    local: list = []
    server, client = summing_apps(local)
    run_local(server_app=server, client_app=client, num_nodes=4, run_config={"scale": 3}, workers=2)
    capfd.readouterr()
    on_ray: list = []
    server, client = summing_apps(on_ray)
    run_ray(server_app=server, client_app=client, num_nodes=4, run_config={"scale": 3}, workers=2)
    assert on_ray == local
    assert local[3] == [(2, "<class 'SystemExit'>:<'3'>"), (2, "<class 'ZeroDivisionError'>:<'division by zero'>")]
    assert [row["threads"] for row in local[0]] == [1] * 4
    assert capfd.readouterr().out == ""


@pytest.mark.needs("ray")
def test_what_the_server_raises_is_raised_here_unchanged_even_while_a_client_is_busy(nothing_left: None) -> None:
    """KeyboardInterrupt, because Ctrl-C arrives in this very thread, where the ServerApp runs."""
    server, client = ServerApp(), ClientApp()
    interrupt = KeyboardInterrupt()

    @client.train()
    def train(message, context):
        import time

        time.sleep(600)

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        grid.push_messages([Message(RecordDict(), dst_node_id=n, message_type="train", group_id="1") for n in grid.get_node_ids()])
        time.sleep(2)
        raise interrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        run_ray(server_app=server, client_app=client, num_nodes=2, run_config={}, workers=1)
    assert caught.value is interrupt


@pytest.mark.needs("ray")
def test_flower_that_is_late_starts_no_second_ray(nothing_left: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine Flower asked its actors to end after Ray was shut down, upon which Ray started anew, for nobody."""
    from fedsec.flower import ray as engine

    threads = []

    class Kept(engine.EngineThread):
        def start(self):
            threads.append(self)
            super().start()

    monkeypatch.setattr(engine, "EngineThread", Kept)
    monkeypatch.setattr(engine, "STOP_GRACE_S", 0.0)
    monkeypatch.setattr(engine, "END_S", 0.0)
    server, client = ServerApp(), ClientApp()

    @client.train()
    def train(message, context):
        from flwr.app import Message, RecordDict

        return Message(RecordDict(), reply_to=message)

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        (node, *_) = grid.get_node_ids()
        assert list(grid.send_and_receive([Message(RecordDict(), dst_node_id=node, message_type="train", group_id="1")]))

    run_ray(server_app=server, client_app=client, num_nodes=2, run_config={}, workers=1)
    (late,) = threads
    late.join(60)
    import ray

    assert isinstance(late.failure.__cause__ or late.failure, Exception)  # it asked a Ray that was gone
    assert not ray.is_initialized()


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"fedsec\[ray\]"):
        run_ray(server_app=ServerApp(), client_app=ClientApp(), num_nodes=2, run_config={})


@pytest.mark.parametrize("bad", [{"num_nodes": 0}, {"workers": 0}, {"run_config": {"a": None}}])
def test_impossible_arguments_are_refused_before_ray_is_started(bad: dict) -> None:
    with pytest.raises(ConfigError):
        run_ray(**({"server_app": ServerApp(), "client_app": ClientApp(), "num_nodes": 2, "run_config": {}} | bad))
