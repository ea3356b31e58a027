"""Replies at the gateway: one client's lies reach neither the ServerApp nor another client, and an honest reply is not lost."""

import asyncio
import hashlib
import json
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from gateway_lab import FakeSuperLink, Lab, LabAgent, LabReply, flower_object, refused, sent_object, tree_of, until

from fedsec.edge import fleet_pb2, paths
from fedsec.edge.collecting import Collector
from fedsec.edge.deliveries import Deliveries
from fedsec.edge.flower_objects import MAX_DEPTH, MAX_OBJECTS, check_kinds, check_object, check_unpacked, read_head, read_tree
from fedsec.edge.refusal import Refused

CODE = grpc.StatusCode


class World:
    """Two nodes; node-a was asked something."""

    def __init__(self, lab, superlink, gateway):
        self.lab, self.superlink, self.gateway, self.state = lab, superlink, gateway, gateway.state

    def id(self, name="node-a"):
        return self.superlink.node_id(name)

    def agent(self, name="node-a"):
        return LabAgent(self.lab, name)

    async def asked(self, agent, text="asked"):
        """The agent's node gets a message."""
        self.superlink.send(agent.party.name, text)
        return await agent.pull(self.id(agent.party.name))


def play(tmp_path, *stories, toml="hold_s = 1.0\nrefresh_s = 0.2\n"):
    """Run stories one after the other; between two of them the gateway is started anew."""

    async def run():
        lab = Lab(tmp_path, toml=toml)
        with FakeSuperLink(lab) as superlink:
            for story in stories:
                async with lab.gateway() as gateway:
                    await until(lambda gateway=gateway: len(gateway.state.registry) == 2)
                    await story(World(lab, superlink, gateway))

    asyncio.run(run())


def ask_object(world, name, object_id, run_id=1):
    return fleet_pb2.PullObjectRequest(node=fleet_pb2.Node(node_id=world.id(name)), run_id=run_id, object_id=object_id)


def confirm(world, name, message_id, run_id=1):
    return fleet_pb2.ConfirmMessageReceivedRequest(node=fleet_pb2.Node(node_id=world.id(name)), run_id=run_id, message_object_id=message_id)


class TestHonest:
    def test_the_superlink_hears_of_a_reply_when_all_of_it_is_there(self, tmp_path):
        async def story(world):
            async with world.agent() as agent:
                await world.asked(agent)
                facts = {"dst_task_id": 17}  # which the ClientApp read inside the message
                reply = LabReply(world.id(), outer=facts, inner=facts)
                told = await reply.announce(agent)
                assert set(told.objects_to_push) == set(reply.objects)
                assert dict(told.results) == {reply.message_id: 0}
                *first, last = reply.objects
                for object_id in first:
                    assert await reply.push_one(agent, told.session_id, object_id)
                assert world.superlink.announced == []
                assert await reply.push_one(agent, told.session_id, last)
                (announced,) = world.superlink.announced
                assert announced == reply.announcement()
                assert world.superlink.objects == reply.objects
                assert len(world.state.collector) == 0

        play(tmp_path, story)

    def test_objects_go_on_some_at_a_time_and_the_message_itself_when_all_others_are_there(self, tmp_path):
        """Between announcement and last object the ServerApp may look, and is put to sleep for a second: that time is to be short."""

        async def story(world):
            taken, at_a_time, store = [], [0], world.superlink.answer

            def slow(body, headers):
                del world.superlink.answers[paths.PUSH_OBJECT]
                answer = store(paths.PUSH_OBJECT, body, headers)
                world.superlink.answers[paths.PUSH_OBJECT] = slow
                at_a_time.append(at_a_time[-1] + 1)
                time.sleep(0.05)
                at_a_time.append(at_a_time[-1] - 1)
                taken.append(fleet_pb2.PushObjectRequest.FromString(body).object_id)
                return answer

            async with world.agent() as agent:
                await world.asked(agent)
                reply = LabReply(world.id(), chunks=tuple(b"chunk %d" % number for number in range(12)))
                world.superlink.answers[paths.PUSH_OBJECT] = slow
                await reply.push(agent)
                assert set(taken) == set(reply.objects)
                assert taken[-1] == reply.message_id
                assert 1 < max(at_a_time) <= 4

        play(tmp_path, story)

    def test_objects_of_one_content_and_two_places_are_pushed_once(self, tmp_path):
        async def story(world):
            async with world.agent() as agent:
                await world.asked(agent)
                reply = LabReply(world.id())
                shared = flower_object("ConfigRecord", b"")
                record = flower_object("RecordDict", json.dumps({"a": shared[0], "b": shared[0]}).encode(), [shared[0]])
                assert shared[0] not in reply.objects
                reply.objects = dict([shared, record])
                body = fleet_pb2.Message(metadata=reply.metadata)
                body.metadata.message_id = ""
                root = flower_object("Message", body.SerializeToString(), [record[0]])
                reply.objects[root[0]] = root[1]
                reply.message_id = reply.metadata.message_id = root[0]
                reply.tree = tree_of(reply.objects, root[0])
                await reply.push(agent)
                assert set(world.superlink.objects) == set(reply.objects)

        play(tmp_path, story)

    def test_an_error_is_a_reply_too(self, tmp_path):
        async def story(world):
            async with world.agent() as agent:
                await world.asked(agent)
                reply = LabReply(world.id())
                body = fleet_pb2.Message(metadata=reply.metadata, error=fleet_pb2.Error(code=5, reason="crashed"))
                body.metadata.message_id = ""
                root = flower_object("Message", body.SerializeToString())
                reply.objects, reply.message_id = dict([root]), root[0]
                reply.metadata.message_id, reply.tree = root[0], fleet_pb2.ObjectTree(object_id=root[0])
                request = reply.announcement()
                with refused(CODE.PERMISSION_DENIED, "message"):  # announced as a content, and is an error
                    told = fleet_pb2.PushMessagesResponse.FromString((await agent.call(paths.PUSH_MESSAGES, request)).body)
                    await reply.push_one(agent, told.session_id, root[0])
                request.messages_list[0].ClearField("content")
                request.messages_list[0].error.code = 5
                told = fleet_pb2.PushMessagesResponse.FromString((await agent.call(paths.PUSH_MESSAGES, request)).body)
                assert await reply.push_one(agent, told.session_id, root[0])
                assert world.superlink.announced[0].messages_list[0].error.code == 5

        play(tmp_path, story)

    def test_everything_may_be_repeated_before_and_after_a_restart_and_after_it_went_through(self, tmp_path):
        """An answer was lost on the wire, the gateway was killed: the SuperNode's repetition is acknowledged, and nothing is lost."""
        kept = {}

        async def before(world):
            async with world.agent() as agent:
                await world.asked(agent)
                reply = kept["reply"] = LabReply(world.id())
                told = kept["told"] = await reply.announce(agent)
                assert (await reply.announce(agent)).session_id == told.session_id
                for object_id in list(reply.objects)[:3]:
                    for _ in range(2):
                        assert await reply.push_one(agent, told.session_id, object_id)
                assert set((await reply.announce(agent)).objects_to_push) == set(list(reply.objects)[3:])

        async def after(world):
            reply, told = kept["reply"], kept["told"]
            async with world.agent() as agent:
                for object_id in reply.objects:
                    for _ in range(2):
                        assert await reply.push_one(agent, told.session_id, object_id)
                assert world.superlink.objects == reply.objects
                assert len(world.superlink.announced) == 1

        async def later(world):
            reply, told = kept["reply"], kept["told"]
            async with world.agent() as agent:
                assert await reply.push_one(agent, told.session_id, reply.message_id)
                assert (await reply.announce(agent)).objects_to_push == []
                assert len(world.superlink.announced) == 1

        play(tmp_path, before, after, later)

    def test_a_superlink_that_fails_half_way_gets_it_again(self, tmp_path):
        async def story(world):
            real, failures = world.superlink.answer, iter([paths.PUSH_MESSAGES, paths.PUSH_OBJECT])
            failing = next(failures)

            def answer(path, body, headers):
                nonlocal failing
                if path == failing:
                    failing = next(failures, None)
                    return 500, b"{}"
                return real(path, body, headers)

            world.superlink.answer = answer
            async with world.agent() as agent:
                await world.asked(agent)
                reply = LabReply(world.id())
                told = await reply.announce(agent)
                *first, last = reply.objects
                for object_id in first:
                    assert await reply.push_one(agent, told.session_id, object_id)
                for _ in range(2):
                    with refused(CODE.UNAVAILABLE, "superlink"):
                        await reply.push_one(agent, told.session_id, last)
                assert await reply.push_one(agent, told.session_id, last)
                assert world.superlink.objects == reply.objects

        play(tmp_path, story)

    def test_a_run_that_ended_costs_one_reply_and_not_the_nodes_loop(self, tmp_path):
        async def story(world):
            world.superlink.answers[paths.PUSH_MESSAGES] = (403, b'{"code": 1}')
            async with world.agent() as agent:
                await world.asked(agent)
                reply = LabReply(world.id())
                told = await reply.announce(agent)
                stored = [await reply.push_one(agent, told.session_id, object_id) for object_id in reply.objects]
                assert stored == [True] * (len(stored) - 1) + [False]
                assert len(world.state.collector) == 0

        play(tmp_path, story)

    def test_a_node_that_answers_anew_replaces_its_unfinished_reply(self, tmp_path):
        async def story(world):
            async with world.agent() as agent:
                await world.asked(agent)
                old, new = LabReply(world.id()), LabReply(world.id(), outer={"created_at": 2.5}, inner={"created_at": 2.5})
                told = await old.announce(agent)
                await new.push(agent)
                with refused(CODE.PERMISSION_DENIED, "message"):
                    await old.push_one(agent, told.session_id, old.message_id)
                assert [one.messages_list[0].metadata.message_id for one in world.superlink.announced] == [new.message_id]

        play(tmp_path, story)

    def test_a_gateway_killed_between_its_two_files_still_serves_the_message(self, tmp_path):
        async def story(world):
            async with world.agent() as agent:
                await world.asked(agent)
                (world.lab.home / "gateway" / "delivered" / str(world.id())).unlink()

        async def after_a_restart(world):
            async with world.agent() as agent:
                assert (await agent.pull(world.id())).delivery
                wanted = ask_object(world, "node-a", sent_object("asked")[0])
                assert (await agent.call(paths.PULL_OBJECT, wanted)).status == 200
                assert (await LabReply(world.id()).announce(agent)).session_id

        play(tmp_path, story, after_a_restart)

    def test_a_confirmation_acknowledges_the_kept_answer(self, tmp_path):
        async def story(world):
            async with world.agent() as agent:
                await world.asked(agent)
                assert len(world.state.spool) == 1
                await agent.call(paths.CONFIRM_MESSAGE_RECEIVED, confirm(world, "node-a", "asked"))
                assert len(world.state.spool) == 0

        play(tmp_path, story)


class TestLies:
    @pytest.mark.parametrize(
        "inner",
        [
            {"src_node_id": 4711},
            {"dst_node_id": 4711},
            {"run_id": 2},
            {"reply_to_message_id": "other"},
            {"message_type": "evaluate"},
            {"created_at": 9.0},
            {"src_task_id": 0},
            {"message_id": "x"},
        ],
        ids=lambda inner: next(iter(inner)),
    )
    def test_a_reply_in_another_nodes_name_inside_never_reaches_the_serverapp(self, tmp_path, inner):
        """The SuperLink compares what stands outside; the ServerApp goes by what stands inside."""

        async def story(world):
            async with world.agent() as agent:
                await world.asked(agent)
                reply = LabReply(world.id(), inner=inner)
                told = await reply.announce(agent)
                *first, root = reply.objects
                for object_id in first:
                    assert await reply.push_one(agent, told.session_id, object_id)
                with refused(CODE.PERMISSION_DENIED, "message"):
                    await reply.push_one(agent, told.session_id, root)
                assert world.superlink.announced == []
                assert world.superlink.objects == {}

        async def after_a_restart(world):
            assert world.superlink.announced == []

        play(tmp_path, story, after_a_restart)

    @pytest.mark.parametrize(
        "root",
        [
            ("ConfigRecord", b"", ()),
            ("Message", b"\xff\xff", ()),
            ("Message", b"", ("0" * 64,)),
            ("Array", b'{"dtype": "f", "shape": [], "stype": "s", "arraychunk_ids": []}', ()),
            ("Unknown", b"", ()),
        ],
    )
    def test_a_root_that_is_no_message_is_refused(self, tmp_path, root):
        """A valid record as the root made Flower's grid raise, and all replies of that pull were lost."""

        async def story(world):
            async with world.agent() as agent:
                await world.asked(agent)
                reply = LabReply(world.id())
                object_id, content = flower_object(*root)
                reply.objects = {object_id: content}
                reply.metadata.message_id = object_id
                reply.tree = fleet_pb2.ObjectTree(object_id=object_id)
                told = await reply.announce(agent)
                with refused(CODE.PERMISSION_DENIED, "message"):
                    await reply.push_one(agent, told.session_id, object_id)
                assert world.superlink.announced == []

        play(tmp_path, story)

    def test_content_children_hash_run_session_and_id_must_be_the_declared_ones(self, tmp_path):
        async def story(world):
            async with world.agent() as agent, world.agent("node-b") as other:
                await world.asked(agent)
                await world.asked(other)
                reply = LabReply(world.id())
                told = await reply.announce(agent)
                chunk, array = next(iter(reply.objects)), list(reply.objects)[2]
                for object_id, changes in (
                    (chunk, {"content": b"other"}),
                    (chunk, {"content": reply.objects[array]}),
                    (chunk, {"run_id": 2}),
                    (chunk, {"session_id": ""}),
                    (chunk, {"session_id": "upstream"}),
                    (chunk, {"object_id": "../../announced", "content": b"x"}),
                    (chunk, {"object_id": chunk.upper(), "content": reply.objects[chunk]}),
                    (chunk, {"object_id": flower_object("ConfigRecord", b"undeclared")[0], "content": b"x"}),
                ):
                    with refused(CODE.PERMISSION_DENIED, "message"):
                        await reply.push_one(agent, **{"session_id": told.session_id, "object_id": object_id, **changes})
                theirs = LabReply(world.id("node-b"))
                with refused(CODE.PERMISSION_DENIED, "message"):
                    await theirs.push_one(other, told.session_id, chunk)
                # The same announcement with another tree: objects with children that they do not have.
                lied = LabReply(world.id())
                lied.tree.children[0].children[0].children.add().object_id = chunk
                told = await lied.announce(agent)
                name = lied.tree.children[0].children[0].object_id
                with refused(CODE.PERMISSION_DENIED, "message"):
                    await lied.push_one(agent, told.session_id, name)
                assert world.superlink.announced == []

        play(tmp_path, story)

    def test_a_record_that_flower_cannot_read_is_refused_with_its_reply(self, tmp_path):
        """Well hashed, and garbled inside: Flower's grid raised, and the replies of all other nodes of that pull were lost."""

        async def story(world):
            async with world.agent() as agent:
                await world.asked(agent)
                reply = LabReply(world.id())
                garbled = flower_object("ConfigRecord", b"\xff\xff\xff")
                record = flower_object("RecordDict", json.dumps({"about": garbled[0]}).encode(), [garbled[0]])
                body = fleet_pb2.Message(metadata=reply.metadata)
                body.metadata.message_id = ""
                root = flower_object("Message", body.SerializeToString(), [record[0]])
                reply.objects = dict([garbled, record, root])
                reply.metadata.message_id, reply.tree = root[0], tree_of(reply.objects, root[0])
                told = await reply.announce(agent)
                for name in (record[0], root[0]):
                    assert await reply.push_one(agent, told.session_id, name)
                with refused(CODE.PERMISSION_DENIED, "message"):
                    await reply.push_one(agent, told.session_id, garbled[0])
                assert world.superlink.announced == []

        play(tmp_path, story)

    def test_objects_that_do_not_fit_into_each_other_are_refused_at_the_end(self, tmp_path):
        async def story(world):
            async with world.agent() as agent:
                await world.asked(agent)
                reply = LabReply(world.id())
                chunk = flower_object("ArrayChunk", b"c")
                body = fleet_pb2.Message(metadata=reply.metadata)
                body.metadata.message_id = ""
                root = flower_object("Message", body.SerializeToString(), [chunk[0]])
                reply.objects = dict([chunk, root])
                reply.metadata.message_id, reply.tree = root[0], tree_of(reply.objects, root[0])
                told = await reply.announce(agent)
                assert await reply.push_one(agent, told.session_id, chunk[0])
                with refused(CODE.PERMISSION_DENIED, "message"):
                    await reply.push_one(agent, told.session_id, root[0])
                assert world.superlink.announced == []

        play(tmp_path, story)

    def test_a_reply_to_a_message_of_another_node_run_or_task_is_refused(self, tmp_path):
        async def story(world):
            async with world.agent() as agent, world.agent("node-b") as other:
                await world.asked(agent)
                metadata = fleet_pb2.Metadata(run_id=1, message_id="with-task", src_task_id=4)
                got = fleet_pb2.PullMessagesResponse(
                    messages_list=[fleet_pb2.Message(metadata=metadata)], message_object_trees=[node("0" * 64)]
                )
                world.state.deliveries.note(world.id(), got)
                for facts in (
                    {"reply_to_message_id": "never"},
                    {"run_id": 2},
                    {"src_task_id": 5},
                    {"reply_to_message_id": "with-task", "dst_task_id": 5},
                ):
                    with refused(CODE.PERMISSION_DENIED, "message"):
                        await LabReply(world.id(), outer=facts, inner=facts).announce(agent)
                with refused(CODE.PERMISSION_DENIED, "message"):
                    await LabReply(world.id("node-b")).announce(other)

        play(tmp_path, story)

    def test_one_nodes_bogus_declaration_does_not_touch_anothers_reply(self, tmp_path):
        """node-b foretells a record of node-a's next reply and declares it with a child: the SuperLink never hears of that."""

        async def story(world):
            async with world.agent() as agent, world.agent("node-b") as liar:
                await world.asked(agent)
                await world.asked(liar)
                reply, lie = LabReply(world.id()), LabReply(world.id("node-b"))
                foretold = next(name for name, content in reply.objects.items() if content.startswith(b"ConfigRecord"))
                lie.tree.children[0].children.add(object_id=foretold).children.add().object_id = "0" * 64
                del lie.tree.children[0].children[1]
                await lie.announce(liar)
                await reply.push(agent)
                assert world.superlink.objects == reply.objects

        play(tmp_path, story)

    def test_a_node_gets_and_confirms_what_was_delivered_to_it_only(self, tmp_path):
        kept = {}

        async def story(world):
            async with world.agent() as agent, world.agent("node-b") as thief:
                await world.asked(agent, "secret")
                object_id = kept["object_id"] = sent_object("secret")[0]
                assert (await agent.call(paths.PULL_OBJECT, ask_object(world, "node-a", object_id))).status == 200
                guessed = flower_object("ConfigRecord", b"num-examples 17")[0]
                for name, party, wanted, run_id in (
                    ("node-b", thief, object_id, 1),
                    ("node-a", agent, guessed, 1),
                    ("node-a", agent, object_id, 2),
                    ("node-a", agent, "", 1),
                ):
                    with refused(CODE.PERMISSION_DENIED, "message"):
                        await party.call(paths.PULL_OBJECT, ask_object(world, name, wanted, run_id))
                for name, party, message_id, run_id in (
                    ("node-b", thief, "secret", 1),
                    ("node-a", agent, "x", 1),
                    ("node-a", agent, "secret", 2),
                ):
                    with refused(CODE.PERMISSION_DENIED, "message"):
                        await party.call(paths.CONFIRM_MESSAGE_RECEIVED, confirm(world, name, message_id, run_id))
                asked = [path for path, _ in world.superlink.calls]
                assert paths.CONFIRM_MESSAGE_RECEIVED not in asked
                assert asked.count(paths.PULL_OBJECT) == 1

        async def after_a_restart(world):
            async with world.agent() as agent, world.agent("node-b") as thief:
                with refused(CODE.PERMISSION_DENIED, "message"):
                    await thief.call(paths.PULL_OBJECT, ask_object(world, "node-b", kept["object_id"]))
                assert (await agent.call(paths.PULL_OBJECT, ask_object(world, "node-a", kept["object_id"]))).status == 200
                assert (await agent.call(paths.CONFIRM_MESSAGE_RECEIVED, confirm(world, "node-a", "secret"))).status == 200
                with refused(CODE.PERMISSION_DENIED, "message"):
                    await agent.call(paths.PULL_OBJECT, ask_object(world, "node-a", kept["object_id"]))

        play(tmp_path, story, after_a_restart)

    def test_a_client_that_enrolled_anew_leaves_nothing_of_its_old_node(self, tmp_path):
        async def story(world):
            async with world.agent() as agent:
                await world.asked(agent)
                old, reply = world.id(), LabReply(world.id())
                await reply.announce(agent)
                held = asyncio.create_task(agent.pull(old))
                world.lab.add("node-a")
                await until(lambda: old in world.superlink.unregistered)
                await until(lambda: not world.state.sessions.find(agent.party.signer.public_key, agent.session._session_id))
                await asyncio.wait([held])
                folders = [world.lab.home / "gateway" / name for name in ("collect", "delivered", "spool")]
                await until(lambda: not any((folder / str(old)).exists() for folder in folders))
                assert len(world.state.spool) == len(world.state.collector) == 0

        play(tmp_path, story)

    def test_a_client_revoked_before_the_last_object_changes_nothing(self, tmp_path):
        async def story(world):
            async with world.agent() as agent:
                await world.asked(agent)
                reply = LabReply(world.id())
                told = await reply.announce(agent)
                *first, last = reply.objects
                for object_id in first:
                    assert await reply.push_one(agent, told.session_id, object_id)
                real = world.state.collector.check_whole

                def check_whole(found):
                    world.lab.revoke("node-a")
                    world.state.trust.reload()
                    real(found)

                world.state.collector.check_whole = check_whole
                with refused(CODE.UNAUTHENTICATED, "revoked"):
                    await reply.push_one(agent, told.session_id, last)
                assert world.superlink.announced == []

        play(tmp_path, story)

    def test_an_answer_that_is_ready_is_not_released_to_who_was_revoked_meanwhile(self, tmp_path):
        async def story(world):
            def answer(_body, _headers):
                world.lab.revoke("node-a")
                world.state.trust.reload()
                return 200, b"secret"

            world.superlink.answers[paths.GET_RUN] = answer
            async with world.agent() as agent:
                request = fleet_pb2.GetRunRequest(node=fleet_pb2.Node(node_id=world.id()), run_id=1)
                with refused(CODE.UNAUTHENTICATED, "revoked"):
                    await agent.call(paths.GET_RUN, request)

        play(tmp_path, story)

    def test_a_node_fills_no_disk(self, tmp_path):
        async def story(world):
            async with world.agent() as agent:
                for number in range(6):
                    await world.asked(agent, f"asked {number}")
                    await agent.call(paths.CONFIRM_MESSAGE_RECEIVED, confirm(world, "node-a", f"asked {number}"))
                replies = [LabReply(world.id(), reply_to=f"asked {number}", chunks=(bytes(900_000),)) for number in range(6)]
                told = [await reply.announce(agent) for reply in replies]
                assert len(world.state.collector) == 4
                with refused(CODE.PERMISSION_DENIED, "message"):
                    await replies[0].push_one(agent, told[0].session_id, replies[0].message_id)
                big = [
                    LabReply(world.id(), reply_to="asked 5", outer={"ttl": 1.0}, chunks=(bytes(990_000), bytes([n]) * 990_000))
                    for n in (1, 2)
                ]
                session = (await big[1].announce(agent)).session_id
                world.state.collector._node_bytes = 1_000_000
                assert await big[1].push_one(agent, session, next(iter(big[1].objects)))
                with refused(CODE.RESOURCE_EXHAUSTED, "size"):
                    await big[1].push_one(agent, session, list(big[1].objects)[1])

        play(tmp_path, story, toml="hold_s = 1.0\nrefresh_s = 0.2\n[limits]\nobject_bytes = 1000000\n")


def node(object_id, *children):
    return fleet_pb2.ObjectTree(object_id=object_id, children=children)


class TestObjects:
    def test_trees_are_bounded(self):
        names = [f"{number:064x}" for number in range(MAX_OBJECTS + 1)]
        flat = node(names[0], *(node(name) for name in names[1:MAX_OBJECTS]))
        assert len(read_tree(flat)) == MAX_OBJECTS
        flat.children.add().object_id = names[MAX_OBJECTS]
        with pytest.raises(Refused):
            read_tree(flat)
        deep = node(names[0])
        for name in names[1:MAX_DEPTH]:
            deep = node(name, deep)
        assert len(read_tree(deep)) == MAX_DEPTH
        with pytest.raises(Refused):
            read_tree(node(names[99], deep))

    def test_a_small_tree_that_unfolds_is_counted_by_its_places(self):
        """Each level twice the one below: as a set of objects it is small, as a tree it is not."""
        tree = node("0" * 64)
        for level in range(1, MAX_DEPTH):
            tree = node(f"{level:064x}", *(node(f"{16 * level + n:064x}", tree) for n in range(4)))
        with pytest.raises(Refused):
            read_tree(tree)

    @pytest.mark.parametrize("name", ["", "0" * 63, "0" * 65, "A" * 64, "g" * 64, "../" + "0" * 61, "0" * 63 + "\n"])
    def test_an_id_is_64_small_hex_digits(self, name):
        with pytest.raises(Refused):
            read_tree(node(name))

    def test_an_object_has_the_same_children_wherever_it_stands(self):
        one, two, three = (f"{number:064x}" for number in range(3))
        with pytest.raises(Refused):
            read_tree(node(one, node(two, node(three)), node(three, node(two))))
        with pytest.raises(Refused):
            read_tree(node(one, node(two), node(two)))

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\0",
            b"Array  0",
            b"Array  1\0",
            b"Array  00\0",
            b"Array  -0\0",
            b"Array   0\0",
            b"array  0\0",
            b"Array x 0\0",
            b"Array\0",
            b"\xff  0\0",
        ],
    )
    def test_what_is_not_of_flowers_form_is_refused(self, content):
        with pytest.raises(Refused):
            check_object(content, (), root=None)

    def test_the_head_has_exactly_the_declared_children_in_any_order(self):
        def record(*children):
            return flower_object("RecordDict", json.dumps({f"{n}": name for n, name in enumerate(children)}).encode(), children)[1]

        assert check_object(record(TWO, ONE), (ONE, TWO), root=None) == "RecordDict"
        for head in ((ONE,), (ONE, ONE), (ONE, TWO, TWO), (ONE, "3" * 64), ()):
            with pytest.raises(Refused, match="not the declared ones"):
                check_object(record(*head), (ONE, TWO), root=None)

    @given(st.binary(max_size=60))
    @settings(max_examples=200, deadline=None)
    def test_hostile_heads_are_refused_or_read_as_flower_reads_them(self, content):
        from flwr.supercore.inflatable.inflatable_object import get_object_head_values_from_object_content

        try:
            head = read_head(content)
        except Refused:
            return
        kind, children, length = get_object_head_values_from_object_content(content)
        assert (head.kind, list(head.children), len(content) - head.body_at) == (kind, children, length)

    def test_the_replies_of_our_own_apps_pass(self):
        """As the ClientApp makes them: an update in the clear, an evaluation, a stage of secure aggregation, an error."""
        import numpy as np
        from flwr.app import Error, Message, RecordDict
        from flwr.app.metadata import Metadata
        from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

        from fedsec.flower.records import About, make_reply
        from fedsec.flower.secure_records import make_stage_reply

        about = About(
            client_id="clinic-ä", run_id="r1", server_round=3, batch_size=60, randomness="operating system", segments=((1.1, 0.5, 40),)
        )
        asked = Message(
            metadata=Metadata(run_id=5, message_id="asked", src_node_id=1, dst_node_id=7, reply_to_message_id="", group_id="", created_at=1.5,
                              ttl=60.0, message_type="train"), content=RecordDict()
        )  # fmt: skip
        arrays = {
            "layer.weight": np.zeros((4, 3), np.float32),
            "layer.bias": np.ones(3, np.float32),
            "count": np.asarray(5),
            "none": np.zeros(0),
        }
        for reply in (
            make_reply(asked, about, arrays=arrays),
            make_reply(asked, about, arrays={"big": np.zeros(12_000_000)}, metrics={"loss": 0.5, "n": 3, "history": [0.1, 0.2]}),
            make_reply(asked, about, metrics={}),
            make_stage_reply(asked, bytes(range(256)) * 10_000),
            make_stage_reply(asked, b""),
            Message(Error(5, "crashed"), reply_to=asked),
        ):
            tree = read_tree(fleet_pb2.ObjectTree.FromString(get_object_tree(reply).SerializeToString()))
            kinds = {}
            for name, one in get_all_nested_objects(reply).items():
                kinds[name] = check_object(one.deflate(), tree[name], root=_outer(reply) if name == reply.object_id else None)
            check_kinds(tree, kinds)

    def test_flwrs_own_messages_pass(self):
        """Real objects, deflated by flwr: with arrays, settings and metrics, and an error."""
        import numpy as np
        from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
        from flwr.app.metadata import Metadata
        from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

        facts = {"run_id": 5, "message_id": "", "src_node_id": 7, "dst_node_id": 1, "reply_to_message_id": "asked", "group_id": "",
                 "created_at": 1.5, "ttl": 60.0, "message_type": "train"}  # fmt: skip
        records = {
            "a": ArrayRecord([np.zeros(3_000_000), np.ones(2)]),
            "c": ConfigRecord({"x": 1}),
            "m": MetricRecord({"v": 1.0}),
            "e": ArrayRecord(),
        }
        for message in (
            Message(metadata=Metadata(**facts), content=RecordDict(records)),
            Message(metadata=Metadata(**facts), content=RecordDict()),
            Message(metadata=Metadata(**facts, src_task_id=3, dst_task_id=4), error=Error(5, "crashed")),
        ):
            tree = read_tree(fleet_pb2.ObjectTree.FromString(get_object_tree(message).SerializeToString()))
            outer = _outer(message)
            kinds = {}
            for name, one in get_all_nested_objects(message).items():
                kinds[name] = check_object(one.deflate(), tree[name], root=outer if name == message.object_id else None)
            assert kinds.keys() == tree.keys()


ONE, TWO = "1" * 64, "2" * 64
ARRAY = {"dtype": "float32", "shape": [2], "stype": "numpy.ndarray", "arraychunk_ids": [0, 1]}


def garbled(kind, body, children=()):
    return pytest.param(kind, body if isinstance(body, bytes) else json.dumps(body).encode(), children, id=f"{kind}-{str(body)[:40]}")


def item(value, key=b"\x0a\x01k"):
    content = key + b"\x12" + bytes([len(value)]) + value
    return b"\x0a" + bytes([len(content)]) + content


VALUES = {"i": -(1 << 63), "u": (1 << 64) - 1, "f": float("nan"), "b": True, "": "text", "é": "", "x": b"\xff" * 3, "e": [],
          "is": [-1, 1 << 62], "us": [(1 << 64) - 1] * 9, "fs": [0.0, 1.5], "bs": [True, False], "ss": ["", "ü"], "xs": [b"", b"\0"]}  # fmt: skip


class TestBodies:
    @pytest.mark.parametrize(
        ("kind", "body", "children"),
        [
            *(
                garbled(kind, body, (ONE,))
                for kind in ("RecordDict", "ArrayRecord")
                for body in (
                    b"",
                    b"\xff",
                    b"{",
                    b"1" * 5000,
                    b'{"a":' * 100_000,
                    b"[" * 100_000,
                    b'{"a": "' + b"x" * (1 << 20) + b'"}',
                    [],
                    {},
                    {"a": 1},
                    {"a": [ONE]},
                    {"a": TWO},
                    {"a": ONE, "b": TWO},
                    {"\ud800": ONE},
                )
            ),
            garbled("RecordDict", {"a": ONE}, (ONE, TWO)),  # fewer names than children
            garbled("ArrayRecord", {f"{n}": ONE for n in range(5000)}, (ONE,)),
            *(
                garbled("Array", ARRAY | change, (ONE, TWO))
                for change in (
                    {"dtype": 1},
                    {"stype": None},
                    {"stype": "a\nb"},
                    {"shape": "2"},
                    {"shape": 2},
                    {"shape": [-1]},
                    {"shape": [True]},
                    {"shape": [1] * 65},
                    {"shape": [1 << 63]},
                    {"arraychunk_ids": None},
                    {"arraychunk_ids": [0]},
                    {"arraychunk_ids": [0, 2]},
                    {"arraychunk_ids": [0, -1]},
                    {"arraychunk_ids": [False, True]},
                    {"arraychunk_ids": [0, 1] + [1] * 17},
                    {"more": 1},
                )
            ),
            garbled("Array", {name: value for name, value in ARRAY.items() if name != "shape"}, (ONE, TWO)),
            *(
                garbled(kind, body)
                for kind in ("ConfigRecord", "MetricRecord")
                for body in (
                    b"settings",
                    b"\xff\xff",
                    b"\x0a\x05",  # torn
                    b"\x0a\x00",  # no key, no value
                    item(b""),  # a value of no kind: Flower asks for the attribute None
                    item(b"\x10\x02") * 2,  # a key twice
                    item(b"\x10\x02\x10\x04"),  # two values
                    item(b"\x10" + b"\x80" * 9),
                    item(b"\x10" + b"\xff" * 10 + b"\x01"),
                    item(b"\x10" + b"\xff" * 9 + b"\x02"),  # over 64 bits
                    item(b"\x09" + bytes(7)),  # a double of seven bytes
                    item(b"\x38\x01"),  # an unknown field
                    item(b"\x10\x02", key=b"\x0a\x01\xff"),  # a key that is no text
                    item(b"\xaa\x01\x05\x0a\x03abc"),  # a list of doubles
                    item(b"\xb2\x01\x03\x0a\x01\x80"),  # a torn number in a list
                    item(b"\xb2\x01\x0d\x0a\x0b" + b"\xff" * 10 + b"\x01"),
                    b"\x12\x00",
                    b"".join(item(b"\x10\x02", key=b"\x0a\x04%04x" % n) for n in range(4097)),
                )
            ),
            garbled("ConfigRecord", item(b"\x20\x02")),
            garbled("ConfigRecord", item(b"\x2a\x01\xff")),
            garbled("ConfigRecord", item(b"\xca\x01\x03\x0a\x01\xff")),
            garbled("ConfigRecord", item(b"\xc2\x01\x03\x0a\x01\x02")),
            garbled("ConfigRecord", b"", (ONE,)),
            garbled("MetricRecord", item(b"\x20\x01")),  # a truth is no metric
            garbled("MetricRecord", item(b"\x2a\x01x")),
        ],
    )
    def test_what_flower_could_not_read_is_refused(self, kind, body, children):
        _, content = flower_object(kind, body, children)
        with pytest.raises(Refused):
            check_object(content, children, root=None)

    def test_many_empty_texts_in_a_small_body_are_refused(self):
        """Two bytes each, and each an object in the memory of whoever reads them."""
        texts = b"\x0a\x00" * ((1 << 16) + 1)
        value = b"\xca\x01" + varint(len(texts)) + texts
        content = b"\x0a\x01k\x12" + varint(len(value)) + value
        with pytest.raises(Refused):
            check_object(flower_object("ConfigRecord", b"\x0a" + varint(len(content)) + content)[1], (), root=None)

    def test_all_kinds_of_values_pass(self):
        from flwr.app import ConfigRecord, MetricRecord

        metrics = {name: value for name, value in VALUES.items() if name in {"i", "u", "f", "is", "us", "fs"}}
        for record in (ConfigRecord(dict(VALUES)), MetricRecord(metrics), ConfigRecord(), MetricRecord()):
            check_object(record.deflate(), (), root=None)

    @given(st.data())
    @settings(max_examples=300, deadline=None)
    def test_a_record_that_passes_is_one_that_flower_reads(self, data):
        """Honest bodies with a few bytes changed, left out and put in."""
        from flwr.app import ConfigRecord, MetricRecord

        kind = data.draw(st.sampled_from([ConfigRecord, MetricRecord]))
        honest = kind({name: VALUES[name] for name in ("i", "u", "f", "is", "us", "fs")}).deflate()
        if kind is ConfigRecord:
            honest = data.draw(st.sampled_from([honest, ConfigRecord(dict(VALUES)).deflate()]))
        body = bytearray(honest.split(b"\0", 1)[1])
        for _ in range(data.draw(st.integers(0, 3))):
            at = data.draw(st.integers(0, max(0, len(body) - 1)))
            body[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
        _, content = flower_object(kind.__qualname__, bytes(body))
        try:
            check_object(content, (), root=None)
        except Refused:
            return
        kind.inflate(content)


def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def _outer(message):
    from flwr.common.serde_utils import metadata_to_proto

    metadata = fleet_pb2.Metadata.FromString(metadata_to_proto(message.metadata).SerializeToString())
    metadata.message_id = message.object_id
    outer = fleet_pb2.Message(metadata=metadata)
    (outer.error if message.has_error() else outer.content).SetInParent()
    return outer


class TestDisk:
    def test_damaged_files_are_no_reply_and_no_licence(self, tmp_path):
        """Files of an earlier gateway, torn or forged: nothing of them counts."""
        folder = tmp_path / "collect"
        folder.mkdir()
        reply = LabReply(7)
        collector = Collector(folder, node_bytes=1 << 20)
        found = collector.announce(7, reply.announcement())
        for name in list(reply.objects)[:3]:
            collector.take(7, found, name, reply.objects[name])
        again = Collector(folder, node_bytes=1 << 20)
        assert set(again.announce(7, reply.announcement()).missing()) == set(list(reply.objects)[3:])
        (found.folder / next(iter(reply.objects))).write_bytes(b"torn")
        again = Collector(folder, node_bytes=1 << 20)
        with pytest.raises(Refused):
            again.find(7, found.session_id, 1, reply.message_id)
        (folder / "8" / "x").mkdir(parents=True)
        (folder / "8" / "x" / "announced").write_bytes(b"\xff")
        assert len(Collector(folder, node_bytes=1 << 20)) == 0
        delivered = tmp_path / "delivered"
        delivered.mkdir()
        for number, text in enumerate(
            (b"", b"\xff", b"[]", b"{}", b'{"format": "fedsec/deliveries/v1", "messages": {"asked": {"run_id": "1"}}}')
        ):
            (delivered / str(number)).write_bytes(text)
            with pytest.raises(Refused):
                Deliveries(delivered).check_message(number, 1, "asked")

    def test_a_reply_that_is_forgotten_while_an_object_is_written_leaves_no_bytes_counted(self, tmp_path):
        """Otherwise each such reply takes a piece of the memory that all nodes share, for good."""
        reply = LabReply(7)
        collector = Collector(tmp_path, node_bytes=1 << 20)
        found = collector.announce(7, reply.announcement())
        write, name = collector._write, next(iter(reply.objects))

        def forgotten_meanwhile(*arguments):
            kind = write(*arguments)
            collector.drop(found)
            return kind

        collector._write = forgotten_meanwhile
        collector.take(7, found, name, reply.objects[name])
        assert (collector._memory, found.memory) == (0, {})

    def test_many_objects_at_the_same_time_do_not_pass_the_nodes_bytes(self, tmp_path):
        """All of them were counted before any was written."""
        reply = LabReply(7, chunks=tuple(bytes([number]) * 1000 for number in range(8)))
        collector = Collector(tmp_path, node_bytes=3500)
        found = collector.announce(7, reply.announcement())
        together = threading.Barrier(8)
        write = collector._write

        def slow(*arguments):
            kind = write(*arguments)
            time.sleep(0.2)
            return kind

        collector._write = slow

        def take(name):
            together.wait()
            try:
                collector.take(7, found, name, reply.objects[name])
            except Refused:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(take, list(reply.objects)[:8])) == 3
        assert found.taken <= 3500
        with pytest.raises(Refused):  # what was refused holds no bytes, and what was taken does
            collector.take(7, found, *next((name, content) for name, content in reply.objects.items() if name not in found.kinds))
        assert collector._reserved == {7: 0}

    def test_a_node_has_sixty_four_messages_the_newest(self, tmp_path):
        deliveries = Deliveries(tmp_path)
        for number in range(70):
            metadata = fleet_pb2.Metadata(run_id=1, message_id=str(number))
            answer = fleet_pb2.PullMessagesResponse(
                messages_list=[fleet_pb2.Message(metadata=metadata)], message_object_trees=[node(f"{number:064x}")]
            )
            deliveries.note(7, answer)
        for known in (deliveries, Deliveries(tmp_path)):
            known.check_message(7, 1, "69")
            known.check_object(7, 1, f"{6:064x}")
            with pytest.raises(Refused):
                known.check_message(7, 1, "5")
            with pytest.raises(Refused):
                known.check_object(7, 1, f"{5:064x}")


class Replay:
    """A stub, and its stream, that gives what it was told to, whatever is asked."""

    def __init__(self, messages):
        self._messages, self.left = messages, 0

    def forward(self, _requests, timeout=None):
        return self

    async def __aiter__(self):
        for message in self._messages:
            yield message

    def cancel(self):
        self.left += 1


def test_answers_of_two_calls_swapped_and_repeated_and_cut_are_not_believed(tmp_path):
    """Whoever stands between, or another server with a good certificate, cannot give one call another call's answer."""
    from fedsec.edge import edge_pb2
    from fedsec.edge.edge_client import send_call
    from fedsec.edge.signing import Call, SessionKeys, prove_call
    from fedsec.errors import DecodeError, SignatureError

    async def story(world):
        answer = random.randbytes(3 << 20)
        world.superlink.answers[paths.GET_RUN] = (200, answer)
        request = fleet_pb2.GetRunRequest(node=fleet_pb2.Node(node_id=world.id()), run_id=1).SerializeToString()
        async with world.agent() as agent:
            headers, keys = agent.headers(), agent.session._keys

            def call():
                return Call(agent.session._session_id, next(agent.session._counter), paths.GET_RUN, b"", headers.public_key,
                            headers.timestamp, headers.signature, len(request), hashlib.sha256(request).digest())  # fmt: skip

            async def record(one):
                head = edge_pb2.ForwardRequest(**vars(one), proof=prove_call(keys, one), chunk=request)
                return [message async for message in agent.stub.forward(iter([head]))]

            first, second = call(), call()
            got, other = await record(first), await record(second)

            async def believed(one, messages, used=keys):
                stream = Replay(messages)
                try:
                    return await send_call(stream, one, used, request)
                finally:
                    assert stream.left == 1  # a call that is not believed is not left open, with its sender waiting

            assert (await believed(first, got)).body == answer
            flipped = bytearray(got[1])
            flipped[5] ^= 1
            changed = edge_pb2.ForwardReply()
            changed.CopyFrom(got[0])
            changed.status = 401
            strangers = SessionKeys(keys.call, bytes(32))
            for one, messages, used, error in (
                (second, got, keys, SignatureError),  # swapped
                (call(), other, keys, SignatureError),  # repeated
                (first, [changed, *got[1:]], keys, SignatureError),
                (first, [got[0], memoryview(bytes(flipped)), *got[2:]], keys, SignatureError),
                (first, [got[0], *got[:0:-1]], keys, SignatureError),  # pieces in another order
                (first, got, strangers, SignatureError),  # another server
                (first, got[:-1], keys, DecodeError),
                (first, [*got, got[-1]], keys, DecodeError),
                (first, [], keys, DecodeError),
                (first, got[1:], keys, DecodeError),
            ):
                with pytest.raises(error):
                    await believed(one, messages, used)

    play(tmp_path, story)


def test_a_hello_by_another_key_or_with_a_bad_share_opens_nothing(tmp_path):
    from fedsec.edge import edge_pb2
    from fedsec.edge.edge_client import hello_request
    from fedsec.edge.signing import new_share, sign_hello_request
    from fedsec.signing import Signer

    async def story(world):
        async with world.agent() as agent:
            der = agent.party.identity.certificate_der
            opened = len(world.state.sessions)
            with refused(CODE.PERMISSION_DENIED, "signature"):
                await agent.stub.hello(hello_request(Signer.generate(), bytes(32), new_share(), der, "x"))
            with refused(CODE.PERMISSION_DENIED, "signature"):
                await agent.stub.hello(hello_request(agent.party.signer, bytes(32), new_share(), b"another", "x"))
            zero = sign_hello_request(agent.party.signer, bytes(32), "x", bytes(32), der)
            for request in (
                edge_pb2.HelloRequest(client_nonce=bytes(32), agent_version="x", client_share=bytes(32), signature=zero),
                edge_pb2.HelloRequest(client_nonce=bytes(32), agent_version="x"),
                edge_pb2.HelloRequest(),
            ):
                with refused(CODE.INVALID_ARGUMENT, "malformed"):
                    await agent.stub.hello(request)
            assert len(world.state.sessions) == opened
            with refused(CODE.RESOURCE_EXHAUSTED, "rate"):
                for _ in range(40):
                    await agent.hello()

    play(tmp_path, story)


def bomb(node_id, *, arrays=1, repeated=0, names=1, chunk=bytes(4000)):
    """A reply in which one chunk is the content of many arrays, each array has many names, and the sender pays for one."""
    reply = LabReply(node_id)
    piece = flower_object("ArrayChunk", chunk)
    objects, named = [piece], {}
    for number in range(arrays):
        fields = {"dtype": "float32", "shape": [number], "stype": "numpy.ndarray", "arraychunk_ids": [0] * (1 + repeated)}
        objects.append(flower_object("Array", json.dumps(fields).encode(), [piece[0]]))
        named |= {f"{number} {name}": objects[-1][0] for name in range(names)}
    children = [name for name, _ in objects[1:]]
    objects.append(flower_object("ArrayRecord", json.dumps(named).encode(), children))
    objects.append(flower_object("RecordDict", json.dumps({"update": objects[-1][0]}).encode(), [objects[-1][0]]))
    body = reply.objects[reply.message_id].split(b"\0", 1)[1]
    objects.append(flower_object("Message", body, [objects[-1][0]]))
    reply.objects, reply.message_id = dict(objects), objects[-1][0]
    reply.metadata = fleet_pb2.Metadata(**{**{f.name: v for f, v in reply.metadata.ListFields()}, "message_id": reply.message_id})
    reply.tree = tree_of(reply.objects, reply.message_id)
    return reply


def test_a_reply_that_unpacks_to_much_more_than_was_sent_never_comes_to_the_serverapp(tmp_path):
    """Each of these is a few kilobytes on the wire; Flower would put hundreds of times that together, for all replies of a pull at once."""

    async def story(world):
        async with world.agent() as agent:
            await world.asked(agent)
            for shape in ({"arrays": 60, "repeated": 16}, {"names": 1000}, {"arrays": 30, "names": 40, "repeated": 16}):
                with refused(CODE.RESOURCE_EXHAUSTED, "size"):
                    await bomb(world.id(), **shape).push(agent)
                assert world.superlink.announced == []
                assert len(world.state.collector) == 0
            await bomb(world.id(), arrays=3, repeated=16, names=2).push(agent)  # equal arrays are nothing bad
            assert len(world.superlink.announced) == 1

    play(tmp_path, story, toml="[limits]\nobject_bytes = 1048576\n")


def test_what_a_reply_unpacks_to_is_counted_by_use():
    reply = bomb(7, arrays=2, repeated=3, names=5)
    sizes = {name: len(data) for name, data in reply.objects.items()}
    kinds = {name: data.split(b" ", 1)[0].decode() for name, data in reply.objects.items()}
    array = next(name for name, kind in kinds.items() if kind == "Array")
    chunk = next(name for name, kind in kinds.items() if kind == "ArrayChunk")
    each = sizes[array] + 4 * sizes[chunk]
    total = 10 * each + sum(size for name, size in sizes.items() if kinds[name] in {"ArrayRecord", "RecordDict", "Message"})
    more = total - sum(sizes.values())
    check_unpacked(reply.message_id, kinds, sizes, reply.objects.__getitem__, more_bytes=more)
    with pytest.raises(Refused, match=f"unpacks to {total} bytes"):
        check_unpacked(reply.message_id, kinds, sizes, reply.objects.__getitem__, more_bytes=more - 1)
