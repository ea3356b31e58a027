import os
import threading
import time

import pytest

from fedsec.flower.process import WorkerLostError, WorkerProcess, fork_worker, interrupts_held


@pytest.fixture
def echo():
    with interrupts_held():
        worker = fork_worker(lambda frames: frames[::-1], siblings=[], entropy=bytes(32))
    yield worker
    worker.close(time.monotonic() + 1)


def test_a_slow_worker_is_waited_for_beyond_the_liveness_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(frames: list[bytes]) -> list[bytes]:
        time.sleep(1.3)
        return frames

    with interrupts_held():
        worker = fork_worker(slow, siblings=[], entropy=bytes(32))
    assert worker.call([b"x"]) == [b"x"]
    worker.close(time.monotonic() + 1)


def test_a_worker_answers_until_it_is_closed_and_is_then_reaped(echo: WorkerProcess) -> None:
    big = os.urandom(3_000_000)
    assert echo.call([b"a", big]) == [big, b"a"]
    assert echo.call([]) == []
    echo.close(time.monotonic() + 1)
    assert not echo.is_alive()
    with pytest.raises(ChildProcessError):
        os.waitpid(echo.pid, os.WNOHANG)
    with pytest.raises(WorkerLostError, match="exited with status 0"):
        echo.call([b"a"])


def test_a_handler_that_raises_ends_its_worker_with_a_status(capfd: pytest.CaptureFixture[str]) -> None:
    with interrupts_held():
        worker = fork_worker(lambda frames: frames[0].no_such, siblings=[], entropy=bytes(32))
    with pytest.raises(WorkerLostError, match="exited with status 1"):
        worker.call([b"a"])
    assert "no_such" in capfd.readouterr().err
    worker.close(time.monotonic() + 1)


def test_closing_ends_a_wait_for_an_answer() -> None:
    with interrupts_held():
        worker = fork_worker(lambda frames: time.sleep(600) or frames, siblings=[], entropy=bytes(32))
    timer = threading.Timer(0.2, worker.close, [time.monotonic() + 0.3])
    timer.start()
    started = time.monotonic()
    with pytest.raises(WorkerLostError):
        worker.call([b"x"])
    timer.join()
    assert time.monotonic() - started < 3
    assert not worker.is_alive()
