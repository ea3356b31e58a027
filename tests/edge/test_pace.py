"""Bodies that come by drops, and bodies that hold room which others want."""

import asyncio
from types import SimpleNamespace

import grpc
import pytest

from fedsec.edge.limits import Limiter, Limits
from fedsec.edge.pace import CONTENDED_BYTES_PER_S, Coming, Pace, PacedReader
from fedsec.edge.refusal import Reason, Refused

MIB = 1 << 20


def pace(**changes):
    return Pace(**{"begun": 0.0, "grace_s": 10.0, "least_per_s": 64 * 1024, "size": 256 * MIB, **changes})


def test_within_the_grace_nothing_is_asked_and_afterwards_the_least_rate():
    one = pace()
    assert one.left_s(0.0) == 10.0
    assert one.left_s(10.5) < 0
    one.came = 64 * 1024 * 20
    assert one.left_s(25.0) == 5.0
    assert pace(came=0).rate(10.0) == float("inf")
    assert pace(came=11 * MIB).rate(11.0) == MIB


class Context:
    """Of a call whose sender gives a piece each so many seconds of the test's clock, and takes no real time."""

    def __init__(self, clock, pieces, each_s):
        self.clock, self.pieces, self.each_s = clock, list(pieces), each_s

    async def read(self):
        self.clock.now += self.each_s
        return SimpleNamespace(chunk=self.pieces.pop(0))


def read_all(each_s, piece, *, count=200):
    clock = SimpleNamespace(now=0.0)
    reader = PacedReader(Context(clock, [piece] * count, each_s), pace(), 60.0, lambda: clock.now)

    async def story():
        while True:
            await reader.read()

    with pytest.raises((Refused, IndexError)) as caught:
        asyncio.run(story())
    return caught, clock.now


def test_a_trickle_is_cut_soon_after_its_grace_and_not_after_the_hour_that_its_size_would_give():
    caught, ended = read_all(5.0, b"x")  # a byte each five seconds, 256 MiB announced
    assert caught.value.reason is Reason.SLOW
    assert ended <= 15.0


def test_a_slow_line_that_keeps_the_least_rate_is_served_to_its_end():
    caught, _ = read_all(8.0, bytes(600 * 1024))
    assert caught.type is IndexError  # it had nothing more to send


def test_silence_is_cut_in_real_time():
    async def story():
        never = SimpleNamespace(read=lambda: asyncio.sleep(60))
        loop = asyncio.get_running_loop()
        reader = PacedReader(never, pace(begun=loop.time(), grace_s=0.2), 10.0, loop.time)
        began = loop.time()
        with pytest.raises(Refused, match="too slowly"):
            await reader.read()
        assert loop.time() - began < 2

    asyncio.run(story())


def test_a_caller_that_takes_no_go_ahead_holds_no_room():
    """It announced a large body and stopped reading its line: gRPC's sending waits, and the body is cut as one that does not come."""

    async def story():
        loop = asyncio.get_running_loop()
        deaf = SimpleNamespace(send_initial_metadata=lambda _: asyncio.sleep(60))
        reader = PacedReader(deaf, pace(begun=loop.time(), grace_s=0.2), 10.0, loop.time)
        with pytest.raises(Refused, match="too slowly"):
            await reader.go_ahead()
        reader = PacedReader(deaf, pace(begun=loop.time()), 10.0, loop.time)
        waiting = asyncio.create_task(reader.go_ahead())
        await asyncio.sleep(0.05)
        reader.let_go()
        with pytest.raises(Refused, match="came the slowest"):
            await waiting

    asyncio.run(story())


def test_a_caller_that_is_gone_when_it_may_go_on_is_refused_with_a_reason_for_the_log():
    async def gone(_):
        raise grpc.aio.InternalError("the batch failed")

    reader = PacedReader(SimpleNamespace(send_initial_metadata=gone), pace(), 10.0, lambda: 0.0)
    with pytest.raises(Refused) as caught:
        asyncio.run(reader.go_ahead())
    assert caught.value.reason is Reason.MALFORMED


def test_when_room_is_short_the_slowest_of_the_slow_is_let_go_and_a_decent_one_never():
    """Four clients together announce all the room there is, and keep the least rate: each would hold its quarter for an hour."""

    async def story():
        loop = asyncio.get_running_loop()
        limiter = Limiter(Limits(inflight_bytes=4 * MIB))
        never = SimpleNamespace(read=lambda: asyncio.sleep(60))
        readers = []
        for number in range(4):
            limiter.hold(bytes([number]), MIB, 0.0)
            one = pace(begun=loop.time() - 20.0, came=(number + 2) * MIB)
            readers.append(PacedReader(never, one, 60.0, loop.time))
            limiter.coming.add(readers[-1])
        waiting = [asyncio.create_task(reader.read()) for reader in readers]
        await asyncio.sleep(0)
        with pytest.raises(Refused, match="as many bytes as it may"):
            limiter.hold(b"honest", MIB, loop.time())
        with pytest.raises(Refused, match="came the slowest"):
            await waiting[0]
        limiter.release(bytes([0]), MIB)  # as the call does when it ends
        limiter.hold(b"honest", MIB, loop.time())
        assert [task.done() for task in waiting] == [True, False, False, False]
        for task in waiting[1:]:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(story())
    fast, young = (PacedReader(None, one, 1.0, lambda: 0.0) for one in (pace(came=11 * CONTENDED_BYTES_PER_S), pace(begun=5.0)))
    coming = Coming()
    assert not coming.let_slowest_go(0.0)
    for reader in (fast, young):
        coming.add(reader)
    assert not coming.let_slowest_go(11.0)


def test_what_was_let_go_reads_no_more():
    reader = PacedReader(SimpleNamespace(read=None), pace(), 10.0, lambda: 0.0)
    reader.let_go()
    with pytest.raises(Refused, match="came the slowest"):
        asyncio.run(reader.read())


def test_a_burst_of_announcements_ends_no_more_bodies_than_one_of_them_needs():
    """An insider announces a small body sixteen times at once while the room is full; the calls that are let go have not ended yet."""

    async def story():
        loop = asyncio.get_running_loop()
        limiter, ended = Limiter(Limits(inflight_bytes=4 * MIB)), []

        async def upload(number):
            reader = PacedReader(SimpleNamespace(read=lambda: asyncio.sleep(60)), pace(begun=loop.time() - 20.0, size=MIB), 60.0, loop.time)
            reader.pace.came = (number + 2) * MIB
            limiter.hold(bytes([number]), MIB, 0.0)
            limiter.coming.add(reader)
            try:
                await reader.read()
            except Refused:
                ended.append(number)
            finally:
                limiter.coming.remove(reader)
                limiter.release(bytes([number]), MIB)

        uploads = [asyncio.create_task(upload(number)) for number in range(4)]
        await asyncio.sleep(0)
        for _ in range(16):
            with pytest.raises(Refused):
                limiter.hold(b"evil", MIB // 2, loop.time())
        await asyncio.sleep(0.05)
        assert (ended, limiter.held_bytes, limiter.coming.leaving_bytes) == ([0], 3 * MIB, 0)
        limiter.hold(b"next", MIB // 2, loop.time())
        with pytest.raises(Refused):  # full once more: the next in the row goes
            limiter.hold(b"evil", MIB, loop.time())
        await asyncio.sleep(0.05)
        assert ended == [0, 1]
        for one in uploads:
            one.cancel()

    asyncio.run(story())
