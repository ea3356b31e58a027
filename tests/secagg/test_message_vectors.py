"""Every byte of a round is what an independent implementation writes; every bad message of the list is refused."""

import hashlib
from typing import Any

import numpy as np
import pytest

from fedsec.errors import DecodeError, SignatureError
from fedsec.secagg import messages
from fedsec.secagg.client_keys import join
from fedsec.secagg.config import LocalPolicy, Member, RoundConfig
from fedsec.secagg.dealing import box_keys
from fedsec.secagg.keys import PrivateKey
from fedsec.secagg.labels import Phase
from fedsec.secagg.opening import combine_secrets, open_round
from fedsec.secagg.server import CohortServer
from fedsec.secagg.shamir import field_secret
from fedsec.secagg.wire import Record


class StandIn:
    """Signs as the vectors do: a hash in place of ECDSA, which is randomised."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.public_key = bytes([2, index]) + bytes(31)

    def sign(self, label: str, message: bytes) -> bytes:
        return hashlib.sha512(f"stand-in {self.index} {label}".encode() + b"\0" + message).digest()


def verify(public_key: bytes, label: str, message: bytes, signature: bytes) -> None:
    if StandIn(public_key[1]).sign(label, message) != signature:
        raise SignatureError("not the stand-in")


@pytest.fixture(scope="module")
def given(vectors: Any) -> Any:
    return vectors("messages")


@pytest.fixture(scope="module")
def config(given: Any) -> RoundConfig:
    return RoundConfig(
        **{name: bytes.fromhex(value) if name.endswith(("_hash", "_commitment")) else value for name, value in given["config"].items()}
    )


def test_config_and_its_digests_are_the_vectors(given: Any, config: RoundConfig) -> None:
    assert config.encode().hex() == given["config_bytes"]
    assert config.context().hex() == given["hashes"]["context"]
    assert config.retry_digest().hex() == given["hashes"]["retry_digest"]


class Run:
    """The machines of fedsec on the inputs of the vectors: what was asked and said, by stage."""

    def __init__(self, given: Any, config: RoundConfig) -> None:
        inputs = given["inputs"]
        self.signers = [StandIn(index) for index in range(4)]
        members = tuple(Member(client_id=name, public_key=self.signers[i].public_key) for i, name in enumerate(inputs["members"]))
        self.encoded = [np.array(vector, dtype=np.int32) for vector in inputs["encoded"]]
        self.states: dict[int, Any] = {}
        self.dealt: dict[int, Any] = {}
        self.requests: dict[str, dict[str, str]] = {}
        self.messages: dict[str, dict[str, str]] = {}
        self.server = server = CohortServer(config=config, members=members, verify=verify)
        while server.phase is not Phase.DONE:
            phase, asked = server.phase, server.requests()
            if phase is not Phase.ADVERTISE_KEYS:
                self.requests[phase.value] = {str(i): data.hex() for i, data in asked.items()}
            for index, data in asked.items():
                if phase is Phase.MASKED_INPUT and index in inputs["rejected"]:
                    continue
                message = self.step(phase, index, data, inputs, config, members)
                self.messages.setdefault(phase.value, {})[str(index)] = message.hex()
                server.receive(index, message)
            if phase is Phase.SKETCH:
                server.screen()
                server.decide(inputs["accepted"])
            else:
                server.close()
                if server.phase is Phase.SKETCH:
                    server.open_nonce([server.input_root()], bytes.fromhex(inputs["nonce"]))
        blame = messages.BlameRequest(context=server.context).encode()
        self.requests["blame"] = {str(i): blame.hex() for i in server.accepted}
        self.messages["blame"] = {str(i): self.states[i].blame_values(blame, signer=self.signers[i]).hex() for i in server.accepted}

    def step(self, phase: Phase, index: int, data: bytes, inputs: Any, config: RoundConfig, members: Any) -> bytes:
        signer: Any = self.signers[index]
        match phase:
            case Phase.ADVERTISE_KEYS:
                made = join(
                    config, members, index, policy=LocalPolicy(), weight=inputs["weights"][index], signer=signer,
                    randomness=bytes.fromhex(inputs["join_randomness"][index]),
                )  # fmt: skip
            case Phase.SHARE_KEYS:
                randomness = bytes.fromhex(inputs["deal_randomness"][index])
                made = self.states[index].share_keys(data, signer=signer, verify=verify, randomness=randomness)
                self.dealt[index] = made[0]
            case Phase.MASKED_INPUT:
                made = self.states[index].accept_dealings(data, verify=verify).upload(self.encoded[index], signer=signer)
            case Phase.SKETCH:
                made = self.states[index].sketch(data, self.encoded[index], signer=signer, salt=bytes.fromhex(inputs["salts"][index]))
            case Phase.CONSISTENCY_CHECK:
                made = self.states[index].consent(data, signer=signer, verify=verify)
            case _:
                made = self.states[index].unmask(data, signer=signer, verify=verify)
        self.states[index] = made[0]
        message: bytes = made[1]
        return message


@pytest.fixture(scope="module")
def run(given: Any, config: RoundConfig) -> Run:
    return Run(given, config)


STAGES = ("share_keys", "masked_input", "sketch", "consistency_check", "unmask", "blame")


@pytest.mark.parametrize("stage", STAGES)
def test_every_request_of_the_round_is_the_vector(given: Any, run: Run, stage: str) -> None:
    assert run.requests[stage] == given["requests"][stage]


@pytest.mark.parametrize("stage", ["advertise_keys", *STAGES])
def test_every_message_of_the_round_is_the_vector(given: Any, run: Run, stage: str) -> None:
    assert run.messages[stage] == given["messages"][stage]


def test_the_hashes_of_the_round_are_the_vectors(given: Any, run: Run) -> None:
    server, hashes = run.server, given["hashes"]
    made = {
        "context": server.context, "base_view": server._base_view, "input_root": server.cohort_roots[0], "matrix_seed": server.matrix_seed,
        "view": server.view, "agreement": server.agreement,
    }  # fmt: skip
    assert {name: value.hex() for name, value in made.items()} == {name: hashes[name] for name in made}


def test_seeds_tags_and_box_keys_of_pairs_are_the_vectors(given: Any, run: Run) -> None:
    randomness = [bytes.fromhex(drawn) for drawn in given["inputs"]["join_randomness"]]
    adverts = [run.server.adverts[index][0] for index in range(4)]
    for case in given["pairs"]:
        i, j = case["pair"]
        for own, peer in ((i, j), (j, i)):
            kept = next(edge for edge in run.dealt[own].pairs if edge.peer == peer)
            assert (kept.seed.hex(), kept.tag.hex()) == (case["seed"], case["tag"])
            secret = PrivateKey(field_secret(randomness[own][32:64])).exchange(adverts[peer].box_key)
            keys = box_keys(secret, adverts[own], adverts[peer])
            assert (keys.seal.hex(), keys.open.hex()) == (case[f"box_{own}_{peer}"], case[f"box_{peer}_{own}"])
            assert kept.open_key == keys.open


def test_the_round_of_the_vectors_opens_the_sum(given: Any, run: Run) -> None:
    secrets, bad = combine_secrets(run.server)
    assert bad == ()
    assert open_round(run.server, secrets).total.tolist() == np.sum(run.encoded[:3], axis=0).tolist()


def test_bad_messages_are_refused(vectors: Any) -> None:
    kinds: dict[str, type[Record]] = {"RoundConfig": RoundConfig} | vars(messages)
    cases = vectors("bad_messages")["messages"]
    assert len({case["id"] for case in cases}) == len(cases) >= 50
    for case in cases:
        with pytest.raises(DecodeError):
            kinds[case["kind"]].decode(bytes.fromhex(case["bytes"]))
            pytest.fail(f"{case['id']}: {case['why']}")
