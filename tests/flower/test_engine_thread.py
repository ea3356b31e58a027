import threading
import time

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fedsec.errors import FedsecError
from fedsec.flower import compat
from fedsec.flower.engine_thread import EngineGrid, EngineThread
from fedsec.flower.grid import LocalGrid

CONTEXT = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})


def engine_that(monkeypatch: pytest.MonkeyPatch, behave) -> EngineThread:
    """An engine whose Flower is ``behave(server_app)``."""
    monkeypatch.setattr(compat, "run_simulation_engine", lambda *, server_app: behave(server_app))
    thread = EngineThread()
    thread.start()
    return thread


def test_an_engine_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def behave(server_app) -> None:
        raise RuntimeError("An error was encountered. Ending simulation.") from OSError("no more sockets")

    engine = engine_that(monkeypatch, behave)
    with pytest.raises(FedsecError, match="ended early: no more sockets"):
        engine.take(3)


def test_the_grid_is_taken_once_all_nodes_are_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Growing(LocalGrid):
        looks = 0

        def get_node_ids(self):
            self.looks += 1
            return range(self.looks)

    grid = Growing(num_nodes=3, run_id=1)
    engine = engine_that(monkeypatch, lambda server_app: server_app(grid, CONTEXT))
    assert engine.take(3) == (grid, CONTEXT)
    assert grid.looks == 3
    engine.check()
    engine.finish()
    engine.join(5)
    assert not engine.is_alive()


def test_a_server_that_waits_for_replies_learns_that_the_engine_broke(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = threading.Event()

    def behave(server_app) -> None:
        threading.Thread(target=server_app, args=(LocalGrid(num_nodes=1, run_id=1), CONTEXT), daemon=True).start()
        broken.wait()
        raise RuntimeError("the cluster went away")

    class Silent(LocalGrid):
        def push_messages(self, messages):
            return [f"m{n}" for n, _ in enumerate(messages)]

        def pull_messages(self, message_ids):
            return []

    engine = engine_that(monkeypatch, behave)
    engine.take(1)
    grid = EngineGrid(Silent(num_nodes=1, run_id=1), engine.check)
    threading.Timer(0.2, broken.set).start()
    started = time.monotonic()
    with compat.task_identity(1), pytest.raises(FedsecError, match="the cluster went away"):
        grid.send_and_receive([Message(RecordDict({"c": ConfigRecord({})}), dst_node_id=1000, message_type="train")])
    assert time.monotonic() - started < 5
    engine.finish()
