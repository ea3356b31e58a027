"""Which nodes there are, when clients come, go, are revoked and enrol anew."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from fedsec.edge import fleet_pb2
from fedsec.edge.fleet_calls import flower_public_key
from fedsec.edge.registration import NODES_FORMAT, Member, Registry, members_of, read_nodes
from fedsec.edge.upstream import PROTOBUF, Response
from fedsec.errors import StorageError
from fedsec.signing import Signer

OLD, NEW, OTHER = (Signer.generate().public_key for _ in range(3))


class SuperLink:
    """Control calls of a SuperLink, in memory."""

    def __init__(self):
        self.nodes, self.next_id = {}, 100

    async def post(self, path, body, _headers):
        if path.endswith("list-nodes"):
            infos = [fleet_pb2.NodeInfo(node_id=number, public_key=pem, status="online") for pem, number in self.nodes.items()]
            answer = fleet_pb2.ListNodesResponse(nodes_info=infos)
        elif path.endswith("unregister-node"):
            gone = fleet_pb2.UnregisterNodeRequest.FromString(body).node_id
            self.nodes = {pem: number for pem, number in self.nodes.items() if number != gone}
            answer = fleet_pb2.UnregisterNodeResponse()
        else:
            self.next_id += 1
            self.nodes[fleet_pb2.RegisterNodeRequest.FromString(body).public_key] = self.next_id
            answer = fleet_pb2.RegisterNodeResponse(node_id=self.next_id)
        return Response(200, PROTOBUF, answer.SerializeToString())


def sync(registry, superlink, *members, revoked=()):
    return asyncio.run(registry.sync(superlink, list(members), lambda serial_number: serial_number in revoked))


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("revoked", [(), (7,)])
def test_a_client_with_a_new_key_is_one_node_and_its_old_node_is_gone(tmp_path, restarted, revoked):
    """Its disk broke; the CA revoked the old key and enrolled a new one. Two nodes would count twice."""
    superlink, registry = SuperLink(), Registry(tmp_path / "nodes.json")
    sync(registry, superlink, Member("client-1", OLD, 7), Member("client-2", OTHER, 8))
    if restarted:
        registry = Registry(tmp_path / "nodes.json")
    done = sync(registry, superlink, Member("client-1", NEW, 9), Member("client-2", OTHER, 8), revoked=revoked)
    assert done == [f"unregistered {OLD.hex()}", "registered client-1"]
    assert set(superlink.nodes) == {flower_public_key(NEW), flower_public_key(OTHER)}
    assert {member.client_id: member.public_key for member in read_nodes(tmp_path / "nodes.json").values()} == {
        "client-1": NEW,
        "client-2": OTHER,
    }
    assert sync(registry, superlink, Member("client-1", NEW, 9), Member("client-2", OTHER, 8), revoked=revoked) == []


def test_a_client_that_is_off_the_list_keeps_its_node(tmp_path):
    superlink, registry = SuperLink(), Registry(tmp_path / "nodes.json")
    sync(registry, superlink, Member("client-1", OLD, 7), Member("client-2", OTHER, 8))
    assert sync(registry, superlink, Member("client-2", OTHER, 8)) == []
    assert registry.find(OLD) is None
    assert len(superlink.nodes) == 2


def test_a_revoked_client_that_is_still_on_the_list_is_not_registered_again(tmp_path):
    superlink, registry = SuperLink(), Registry(tmp_path / "nodes.json")
    members = Member("client-1", OLD, 7), Member("client-2", OTHER, 8)
    sync(registry, superlink, *members)
    assert sync(registry, superlink, *members, revoked=(7,)) == [f"unregistered {OLD.hex()}"]
    assert registry.find(OLD) is None
    assert sync(registry, superlink, *members, revoked=(7,)) == []
    assert set(superlink.nodes) == {flower_public_key(OTHER)}
    assert [member.client_id for member in read_nodes(tmp_path / "nodes.json").values()] == ["client-2"]


def test_a_node_whose_certificate_nobody_saw_is_registered_and_not_told_to_the_serverapp(tmp_path):
    """Nobody could say whether it is revoked."""
    superlink, registry = SuperLink(), Registry(tmp_path / "nodes.json")
    members = Member("client-1", OLD, None), Member("client-2", OTHER, 8)
    sync(registry, superlink, *members)
    assert registry.find(OLD) is not None
    assert [member.client_id for member in read_nodes(tmp_path / "nodes.json").values()] == ["client-2"]
    assert registry.saw(OLD, 7)
    sync(registry, superlink, *members)
    assert {member.client_id: member.serial_number for member in read_nodes(tmp_path / "nodes.json").values()} == {
        "client-1": 7,
        "client-2": 8,
    }


def test_a_list_names_its_clients_until_its_last_moment_and_no_list_names_nobody():
    end = datetime(2030, 1, 1, tzinfo=UTC)
    roster = SimpleNamespace(not_after=end, members=[SimpleNamespace(client_id="client-1", public_key=OLD)])
    standing = SimpleNamespace(roster=roster, serial_numbers={"client-1": 7})
    assert members_of(standing, end) == [Member("client-1", OLD, 7)]
    assert members_of(standing, end + timedelta(microseconds=1)) == []
    assert members_of(SimpleNamespace(roster=None, serial_numbers={}), end) == []


def test_a_file_in_which_somebody_stands_twice_is_worth_nothing(tmp_path):
    path = tmp_path / "nodes.json"
    entry = lambda name, key: {"client_id": name, "public_key": key.hex(), "serial_number": "7"}  # noqa: E731
    path.write_text(json.dumps({"format": NODES_FORMAT, "nodes": {"1": entry("a", OLD), "2": entry("b", NEW)}}))
    assert len(read_nodes(path)) == 2
    for second in (entry("a", NEW), entry("b", OLD)):
        path.write_text(json.dumps({"format": NODES_FORMAT, "nodes": {"1": entry("a", OLD), "2": second}}))
        with pytest.raises(StorageError, match="twice"):
            read_nodes(path)
