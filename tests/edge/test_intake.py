"""Large objects that are hashed and written while they come: whatever is sent, and in whatever pieces, only what was proven and checked stays."""

import asyncio
import hashlib
import os
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from gateway_lab import FakeSuperLink, Lab, LabAgent, LabReply, refused, until
from test_gateway import signed

from fedsec.edge import bodies, edge_client, fleet_pb2, paths
from fedsec.edge import upstream as upstream_module
from fedsec.edge.collecting import Collector
from fedsec.edge.edge_client import send_call
from fedsec.edge.fleet_calls import Node, find_content
from fedsec.edge.flower_objects import Head
from fedsec.edge.intake import LEAST_BYTES, MAX_TAIL_BYTES, Intake, Part
from fedsec.edge.memory import keep_freed_memory
from fedsec.edge.refusal import Refused
from fedsec.edge.upstream import FileBody, signature_of

CODE = grpc.StatusCode
LARGE = random.Random(1).randbytes(3 * LEAST_BYTES + 12345)


class World:
    """node-a was asked something, and announced a reply with a large chunk."""

    def __init__(self, lab, superlink, gateway, agent):
        self.lab, self.superlink, self.agent, self.state = lab, superlink, agent, gateway.state
        self.node_id = superlink.node_id("node-a")

    async def announce(self):
        self.superlink.send("node-a", "asked")
        await self.agent.pull(self.node_id)
        self.reply = LabReply(self.node_id, chunks=(LARGE, b"second"))
        self.name = next(name for name, content in self.reply.objects.items() if len(content) > len(LARGE))
        self.told = await self.reply.announce(self.agent)

    def body(self, **changes):
        fields = {"node": fleet_pb2.Node(node_id=self.node_id), "run_id": 1, "object_id": self.name,
                  "object_content": self.reply.objects[self.name], "session_id": self.told.session_id}  # fmt: skip
        return fleet_pb2.PushObjectRequest(**{**fields, **changes}).SerializeToString()

    async def send(self, body, **changes):
        call, keys, _ = signed(self.agent, path=paths.PUSH_OBJECT, body=body, **changes)
        answer = await send_call(self.agent.stub, call, keys, body, timeout_s=20)
        return fleet_pb2.PushObjectResponse.FromString(answer.body).stored

    def files(self):
        """What lies in the reply's folder, but for the announcement."""
        return {path.name for path in (self.lab.home / "gateway" / "collect").glob("*/*/*")} - {"announced"}

    async def nothing_is_left(self):
        await until(lambda: not self.files())
        await until(lambda: self.state.collector._reserved.get(self.node_id, 0) == 0 == self.state.limiter.held_bytes)

    async def the_rest(self):
        """An honest SuperNode pushes everything that is missing."""
        for name in [name for name in self.reply.objects if name != self.name]:
            assert await self.reply.push_one(self.agent, self.told.session_id, name)


def play(tmp_path, *stories, toml="hold_s = 1.0\nrefresh_s = 0.2\n"):
    async def run():
        lab = Lab(tmp_path, toml=toml)
        with FakeSuperLink(lab) as superlink:
            for story in stories:
                async with lab.gateway() as gateway:
                    await until(lambda gateway=gateway: len(gateway.state.registry) == 2)
                    async with LabAgent(lab, "node-a") as agent:
                        await story(World(lab, superlink, gateway, agent))

    asyncio.run(run())


@pytest.fixture
def taken(monkeypatch):
    """The intakes that the gateway made."""
    made = []

    class Seen(Intake):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(bodies, "Intake", Seen)
    return made


def cut_into(monkeypatch, cut):
    """Have the agent send bodies in other pieces."""
    monkeypatch.setattr(edge_client, "pieces", lambda body: (memoryview(body)[a:b] for a, b in cut(len(body))))


def places(size, *at):
    ends = [*sorted(place for place in at if 0 < place < size), size]
    return list(zip([0, *ends], ends, strict=False))


def test_a_large_object_goes_to_a_file_while_it_comes_and_whole_to_the_superlink(tmp_path, taken):
    async def story(world):
        await world.announce()
        assert await world.send(world.body())
        assert len(taken) == 1
        assert world.files() == {world.name}
        (found,) = world.state.collector._nodes[world.node_id].values()
        assert world.name not in found.memory
        assert world.superlink.announced == []  # the SuperLink hears of it when all of it is there
        await world.the_rest()
        assert world.superlink.objects == world.reply.objects
        await until(lambda: world.files() == {"done"})
        await until(lambda: world.state.limiter.held_bytes == 0)

    play(tmp_path, story)


@pytest.mark.parametrize("seed", range(4))
def test_pieces_of_any_size_give_the_same_object(tmp_path, monkeypatch, taken, seed):
    """Cut at random, and in the middle of the object's first and last bytes and of the fields around it."""
    draw = random.Random(seed)

    async def story(world):
        await world.announce()
        body = world.body()
        place = find_content(body, len(body))
        edges = [
            place.tag_at - 1,
            place.tag_at,
            place.begin - 1,
            place.begin,
            place.begin + 1,
            place.end - 1,
            place.end,
            place.end + 1,
            len(body) - 1,
        ]
        some = [draw.randrange(1, len(body)) for _ in range(8)] + list(range(1 << 20, len(body), 1 << 20))
        start = [] if seed else edges[:5]  # cut in its first bytes, a body is taken as a whole
        cut_into(monkeypatch, lambda size: places(size, *some, *edges[5:], *start) if size > LEAST_BYTES else [(0, size)])
        assert await world.send(body)
        assert len(taken) == (1 if seed else 0)
        await world.the_rest()
        assert world.superlink.objects == world.reply.objects

    play(tmp_path, story)


def test_a_piece_that_was_changed_in_flight_is_refused_and_leaves_nothing(tmp_path, taken):
    async def story(world):
        await world.announce()
        body = bytearray(world.body())
        proven = hashlib.sha256(body).digest()
        for place in (len(body) // 2, len(body) - 1, 5):
            other = bytearray(body)
            other[place] ^= 1
            with refused(CODE.PERMISSION_DENIED, "signature"):
                await world.send(bytes(other), body_sha256=proven)
            await world.nothing_is_left()
        assert taken
        assert world.name in world.state.collector.find(world.node_id, world.told.session_id, 1, world.name).missing()
        assert await world.send(bytes(body))

    play(tmp_path, story)


def test_an_object_that_is_not_its_id_is_refused_and_leaves_nothing(tmp_path, taken):
    """The node proves what it sends, and lies about what it is."""

    async def story(world):
        await world.announce()
        content = bytearray(world.reply.objects[world.name])
        content[-1] ^= 1
        with refused(CODE.PERMISSION_DENIED, "message"):
            await world.send(world.body(object_content=bytes(content)))
        assert len(taken) == 1
        await world.nothing_is_left()
        await world.the_rest()
        assert world.superlink.announced == []

    play(tmp_path, story)


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        ({"node": fleet_pb2.Node(node_id=99)}, CODE.PERMISSION_DENIED, "node"),
        ({"session_id": "another"}, CODE.PERMISSION_DENIED, "message"),
        ({"session_id": ""}, CODE.PERMISSION_DENIED, "message"),
        ({"run_id": 2}, CODE.PERMISSION_DENIED, "message"),
        ({"object_id": "0" * 64}, CODE.PERMISSION_DENIED, "message"),
        ({"object_content": LARGE}, CODE.PERMISSION_DENIED, "message"),
        ({"session_id": "x" * (MAX_TAIL_BYTES + 1)}, CODE.PERMISSION_DENIED, "message"),
    ],
)
def test_fields_around_the_object_are_read_like_any_others(tmp_path, changes, status, reason):
    async def story(world):
        await world.announce()
        with refused(status, reason):
            await world.send(world.body(**changes))
        await world.nothing_is_left()

    play(tmp_path, story)


def test_fields_that_flower_does_not_write_are_refused_after_the_object_too(tmp_path, taken):
    async def story(world):
        await world.announce()
        body = world.body()
        for tail in (b"\x32\x01x", body[:4], b"\x2a", b"\x22\x00"):
            with refused(CODE.INVALID_ARGUMENT, "malformed"):
                await world.send(body + tail)
        assert len(taken) == 4
        await world.nothing_is_left()

    play(tmp_path, story)


def test_a_call_that_is_cut_half_way_leaves_nothing_and_the_repetition_passes(tmp_path, monkeypatch, taken):
    async def story(world):
        await world.announce()
        body, holding = world.body(), asyncio.Event()

        async def half(*call):
            messages = whole_messages(*call)
            yield await anext(messages)
            yield await anext(messages)
            holding.set()
            await asyncio.sleep(60)

        whole_messages = edge_client._messages
        with monkeypatch.context() as patch:
            patch.setattr(edge_client, "_messages", half)
            sending = asyncio.create_task(world.send(body))
            await asyncio.wait_for(holding.wait(), 20)
            await until(lambda: world.files())
            assert world.state.collector._reserved[world.node_id] > len(LARGE)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        await world.nothing_is_left()
        assert await world.send(body)
        await world.the_rest()
        assert world.superlink.objects == world.reply.objects

    play(tmp_path, story)


def test_a_body_that_is_shorter_or_longer_than_announced_leaves_nothing(tmp_path, monkeypatch, taken):
    async def story(world):
        await world.announce()
        body = world.body()
        with refused(CODE.INVALID_ARGUMENT, "malformed"):
            await world.send(body[:-1000], body_size=len(body), body_sha256=hashlib.sha256(body).digest())
        with refused(CODE.INVALID_ARGUMENT, "malformed"):
            await world.send(body + b"more", body_size=len(body), body_sha256=hashlib.sha256(body).digest())
        assert len(taken) == 2
        await world.nothing_is_left()

    play(tmp_path, story)


def test_the_same_object_twice_at_a_time_is_taken_once(tmp_path, taken):
    async def story(world):
        await world.announce()
        body = world.body()
        assert await asyncio.gather(*(world.send(body) for _ in range(3))) == [True] * 3
        assert world.files() == {world.name}
        (found,) = world.state.collector._nodes[world.node_id].values()
        assert found.taken == len(world.reply.objects[world.name])

    play(tmp_path, story)


def test_a_node_cannot_have_more_bytes_under_way_than_it_may_have(tmp_path, taken):
    async def story(world):
        await world.announce()
        world.state.collector._node_bytes = len(LARGE) + 1000
        with refused(CODE.RESOURCE_EXHAUSTED, "size"):
            for _ in range(2):
                await asyncio.gather(world.send(world.body()), world.send(world.body()))
        await until(lambda: world.state.collector._reserved[world.node_id] == 0 == world.state.limiter.held_bytes)

    play(tmp_path, story)


def test_a_gateway_that_was_killed_while_an_object_came_begins_it_anew(tmp_path):
    async def before(world):
        await world.announce()
        (folder,) = (world.lab.home / "gateway" / "collect").glob("*/*")
        (folder / f"{world.name}.00ff00ff").write_bytes(LARGE[:1000])
        play.reply = world

    async def after(world):
        world.reply, world.name, world.told = play.reply.reply, play.reply.name, play.reply.told
        assert world.files() == set()
        assert await world.send(world.body())
        await world.the_rest()
        assert world.superlink.objects == world.reply.objects

    play(tmp_path, before, after)


def test_a_file_that_somebody_touched_is_hashed_before_it_is_used(tmp_path, taken):
    """A disk that fails, or a hand that slips: the SuperLink does not hear of such a reply as long as it is not sent again."""

    async def story(world):
        await world.announce()
        assert await world.send(world.body())
        (path,) = (world.lab.home / "gateway" / "collect").glob(f"*/*/{world.name}")
        content = path.read_bytes()
        path.write_bytes(content)  # the same, by another hand
        await world.the_rest()
        assert world.superlink.objects == world.reply.objects

    play(tmp_path, story)


def test_a_damaged_file_goes_nowhere(tmp_path):
    reply = LabReply(7)
    collector = Collector(tmp_path, node_bytes=1 << 20)
    found = collector.announce(7, reply.announcement())
    name = next(iter(reply.objects))
    content = reply.objects[name]
    part = collector.part(7, 1, name, memoryview(content)[:40], len(content))
    assert part.head == Head("ArrayChunk", (), len(content) - len(reply.chunks[0]))
    with ThreadPoolExecutor(1) as pool:
        intake = Intake(part, find_content(b"\x22" + bytes((len(content),)), len(content) + 2), pool)
        asyncio.run(intake.take(b"\x22" + bytes((len(content),)) + content))
        asyncio.run(intake.finish())
        collector.adopt(found, intake)
        intake.close()
    collector.release(part)
    body = collector.content(found, name)
    assert isinstance(body, FileBody)
    assert b"".join(body) == content
    (found.folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(OSError, match="changed"):
        b"".join(body)
    with pytest.raises(Exception, match="damaged"):
        collector.content(found, name)


@pytest.mark.parametrize("declared", [(), ("ab" * 32,)])
def test_a_large_object_whose_children_are_not_the_declared_ones_is_refused(tmp_path, declared):
    """Its hash is its id, and the ServerApp would look for a child that nobody sent."""
    collector, reply = Collector(tmp_path, node_bytes=1 << 20), LabReply(7)
    found = collector.announce(7, reply.announcement())
    name = next(iter(reply.objects))
    content, head = reply.objects[name], b"\x22" + bytes((len(reply.objects[name]),))
    part = collector.part(7, 1, name, memoryview(content)[:40], len(content))
    found.tree[name] = declared
    with ThreadPoolExecutor(1) as pool:
        intake = Intake(part, find_content(head, len(content) + 2), pool)
        asyncio.run(intake.take(head + content))
        asyncio.run(intake.finish())
        if declared:
            with pytest.raises(Refused, match="children"):
                collector.adopt(found, intake)
        else:
            collector.adopt(found, intake)
        intake.close()
    assert (name in found.kinds, (found.folder / name).exists()) == (not declared, not declared)


def test_a_file_is_sent_as_it_was_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "object"
    path.write_bytes(bytes(range(256)) * 40)
    monkeypatch.setattr(upstream_module, "FILE_PIECE", 1000)
    body = FileBody(path, signature_of(path.stat()))
    assert len(body) == 10240
    assert b"".join(bytes(piece) for piece in body) == path.read_bytes()
    assert max(map(len, body)) == 1000
    os.truncate(path, 5000)
    with pytest.raises(OSError):
        b"".join(body)
    path.unlink()
    with pytest.raises(OSError):
        b"".join(body)


def test_where_the_object_is_is_read_in_one_spelling_only():
    request = fleet_pb2.PushObjectRequest(
        node=fleet_pb2.Node(node_id=7), run_id=1, object_id="a" * 64, object_content=b"x" * 300, session_id="s"
    )
    body = request.SerializeToString()
    place = find_content(body[:100], len(body))
    assert body[place.begin : place.end] == b"x" * 300
    assert (place.run_id, place.object_id) == (1, "a" * 64)
    assert find_content(body[:70], len(body)) is None  # it ends before the content begins
    assert find_content(body[:100], 200) is None  # and here the content would end after the body
    content_field = body[place.tag_at : place.begin]
    for odd in (
        content_field + body[: place.tag_at],  # in another order: content first is fine for Flower, whose fields come later
        body[: place.tag_at] * 2 + content_field,
        body[: place.tag_at] + b"\x22\xac\x82\x00",  # 300, spelt longer
        b"\x32\x00" + content_field,
        b"\xff" * 20,
        b"",
    ):
        found = find_content(odd, 10_000)
        assert found is None or found.object_id == ""  # nothing has that id, so it is taken as a whole and refused there


def test_a_failing_disk_is_said_and_nothing_stays(tmp_path):
    part = Part(node_id=7, object_id="a" * 64, head=Head("ArrayChunk", (), 20), size=10, path=tmp_path / "none" / "x")
    with ThreadPoolExecutor(1) as pool, pytest.raises(Exception, match="cannot write"):
        Intake(part, find_content(b"\x22\x01", 3), pool)
    part = Part(node_id=7, object_id="a" * 64, head=Head("ArrayChunk", (), 20), size=10, path=tmp_path / "x")

    async def fail(pool):
        intake = Intake(part, find_content(b"\x22\x64", 102), pool)
        os.dup2(os.open("/dev/full", os.O_WRONLY), intake._file)
        try:
            await intake.take(b"\x22\x64" + b"y" * 100)
            await intake.finish()
        finally:
            intake.close()

    with ThreadPoolExecutor(1) as pool, pytest.raises(Exception, match="cannot write"):
        asyncio.run(fail(pool))
    assert not part.path.exists()


def test_the_fields_around_are_the_certificates_nodes(tmp_path):
    request = fleet_pb2.PushObjectRequest(
        node=fleet_pb2.Node(node_id=7), run_id=1, object_id="a" * 64, object_content=b"x" * 90, session_id="s"
    )
    body = request.SerializeToString()
    part = Part(node_id=7, object_id="a" * 64, head=Head("ArrayChunk", (), 20), size=90, path=tmp_path / "x")
    with ThreadPoolExecutor(1) as pool:
        intake = Intake(part, find_content(body, len(body)), pool)
        for byte in body:  # the smallest pieces
            asyncio.run(intake.take(bytes((byte,))))
        assert asyncio.run(intake.finish()) == hashlib.sha256(body).digest()
        assert (tmp_path / "x").read_bytes() == b"x" * 90
        assert intake.object_sha256 == hashlib.sha256(b"x" * 90).hexdigest()
        assert intake.pushed(Node("a", b"", 7)).session_id == "s"
        with pytest.raises(Refused, match="another node"):
            intake.pushed(Node("b", b"", 8))
        intake.close()
    assert not (tmp_path / "x").exists()


def test_freed_memory_is_kept_where_the_library_understands_it():
    assert keep_freed_memory() in (True, False)
    if "glibc" in os.confstr("CS_GNU_LIBC_VERSION"):
        assert keep_freed_memory()
