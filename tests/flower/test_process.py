import os
import socket
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.flower.process import MAX_BUFFERS, WorkerLostError, WorkerProcess, fork_worker, interrupts_held, receive_frames, send_frames


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def echo():
    with interrupts_held():
        worker = fork_worker(lambda frames: frames[::-1], siblings=[], entropy=bytes(32))
    yield worker
    worker.close(time.monotonic() + 1)


def exchange(sender: socket.socket, receiver: socket.socket, frames: list[bytes]) -> list[bytes]:
    thread = threading.Thread(target=send_frames, args=(sender, frames))
    thread.start()
    try:
        return receive_frames(receiver)
    finally:
        thread.join()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.binary(max_size=50), max_size=20))
def test_frames_come_back_as_they_were_sent(frames: list[bytes]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert exchange(ours, theirs, frames) == frames
        assert exchange(theirs, ours, frames[::-1]) == frames[::-1]


@pytest.mark.parametrize(
    "frames", [[os.urandom(5_000_000), b"", os.urandom(300_001)], [bytes([n % 256]) * (n % 7) for n in range(3 * MAX_BUFFERS)]]
)
def test_large_and_many_frames_pass_a_small_buffer(pair: tuple[socket.socket, socket.socket], frames: list[bytes]) -> None:
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    assert exchange(*pair, frames) == frames


def test_a_connection_that_ends_anywhere_is_an_end_of_file(pair: tuple[socket.socket, socket.socket]) -> None:
    sent = bytearray()
    thread = threading.Thread(target=send_frames, args=(pair[0], [b"abc", b"defg"]))
    thread.start()
    thread.join()
    sent += pair[1].recv(1000)
    for cut in range(len(sent)):
        ours, theirs = socket.socketpair()
        with theirs:
            ours.sendall(sent[:cut])
            ours.close()
            with pytest.raises(EOFError):
                receive_frames(theirs)
            with pytest.raises(EOFError):
                send_frames(theirs, [b"x"])


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
