"""Flower's Simulation Engine in a thread of its own, so that the ServerApp can run in the caller's."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

from flwr.app import Context, Message
from flwr.serverapp import Grid

from fedsec.errors import FedsecError
from fedsec.flower import compat
from fedsec.flower.grid import WaitingGrid

POLL_S = 0.02
"""Pause between two looks at Flower's state, which lies in this process."""


class EngineThread(threading.Thread):
    """Flower's engine in a thread; the ServerApp it runs only hands its grid over and waits."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(name="fedsec-ray-engine", daemon=True)
        self._arguments = arguments
        self._handed: queue.SimpleQueue[tuple[Grid, Context]] = queue.SimpleQueue()
        self._over = threading.Event()
        self.failure: BaseException | None = None

    def run(self) -> None:
        """Run the engine until the ServerApp that it was given returns."""
        try:
            compat.run_simulation_engine(server_app=self._hand_over, **self._arguments)
        except BaseException as error:  # noqa: BLE001 - reported in the caller's thread
            self.failure = error

    def _hand_over(self, grid: Grid, context: Context) -> None:
        self._handed.put((grid, context))
        self._over.wait()

    def take(self, num_nodes: int) -> tuple[Grid, Context]:
        """Wait for the grid, until all nodes are on it: Flower starts the ServerApp first and makes its nodes meanwhile."""
        handed: tuple[Grid, Context] | None = None
        while handed is None or len(list(handed[0].get_node_ids())) < num_nodes:
            self.check()
            if handed is not None:
                time.sleep(POLL_S)
                continue
            with contextlib.suppress(queue.Empty):
                handed = self._handed.get(timeout=POLL_S)
        return handed

    def check(self) -> None:
        """Raise if the engine has ended before its time.

        Raises:
            FedsecError: it has; says why.
        """
        if not self.is_alive():
            cause = self.failure.__cause__ or self.failure if self.failure is not None else None
            raise FedsecError(f"Flower's Simulation Engine ended early: {cause}") from self.failure

    def finish(self) -> None:
        """Let the ServerApp that Flower runs return, upon which Flower stops."""
        self._over.set()


class EngineGrid(WaitingGrid):
    """Flower's own grid, which would wait for ever if the engine behind it ended."""

    def __init__(self, inner: Grid, check: Callable[[], None]) -> None:
        self._inner = inner
        self._check = check

    def set_run(self, run: Any) -> None:
        """See ``Grid``."""
        self._inner.set_run(run)

    @property
    def run(self) -> Any:
        """See ``Grid``."""
        return self._inner.run

    def get_node_ids(self) -> Iterable[int]:
        """See ``Grid``."""
        return self._inner.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See ``Grid``."""
        self._check()
        return self._inner.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See ``Grid``."""
        self._check()
        return self._inner.pull_messages(message_ids)

    def wait_for_replies(self, message_ids: Collection[str], timeout_s: float) -> None:  # noqa: ARG002 - Flower's state can only be polled
        """A pause."""
        time.sleep(min(timeout_s, POLL_S))
