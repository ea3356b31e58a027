import os
import socket
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.flower.frames import MAX_BUFFERS, receive_frames, send_frames


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


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
