"""What Flower's SecAgg+ falls to, acted out with its own functions, and the same request to a client of ours.

The first three failures of theirs recover one client's update; each of them is run here to the end, so that the comparison is not hearsay.
If a release of Flower mends one, its test fails here, and the documents can be corrected.
"""

import importlib.util
import logging
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

flower = pytest.importorskip("flwr.client.mod.secure_aggregation.secaggplus_mod")

from flwr.common import ndarrays_to_parameters  # noqa: E402
from flwr.common.secure_aggregation.crypto.shamir import combine_shares  # noqa: E402
from flwr.common.secure_aggregation.crypto.symmetric_encryption import decrypt, generate_shared_key  # noqa: E402
from flwr.common.secure_aggregation.ndarrays_arithmetic import factor_combine, parameters_multiply  # noqa: E402
from flwr.common.secure_aggregation.quantization import quantize  # noqa: E402
from flwr.common.secure_aggregation.secaggplus_constants import Key, Stage  # noqa: E402
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen, share_keys_plaintext_separate  # noqa: E402
from flwr.supercore.primitives.asymmetric import (  # noqa: E402
    bytes_to_private_key,
    bytes_to_public_key,
    generate_key_pairs,
    private_key_to_bytes,
    public_key_to_bytes,
)

from fedsec.errors import ConfigError, DecodeError, PeerError  # noqa: E402
from fedsec.secagg.labels import Phase  # noqa: E402
from fedsec.secagg.messages import ConsistencyRequest, ShareKeysRequest, SignedPart, UnmaskRequest  # noqa: E402

RING = 1 << 32
UPDATE = [np.linspace(-1, 1, 20)]
SETTINGS = {
    Key.SAMPLE_NUMBER: 3, Key.SHARE_NUMBER: 3, Key.THRESHOLD: 2, Key.CLIPPING_RANGE: 8.0, Key.TARGET_RANGE: 1 << 22, Key.MOD_RANGE: RING,
    Key.MAX_WEIGHT: 100.0,
}  # fmt: skip


def _load(name):
    full = f"fedsec_tests_secagg_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, Path(__file__).with_name(f"{name}.py"))
        sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[full])
    return sys.modules[full]


hostile = _load("hostile")
Federation = hostile.Federation


def honest_sum(update, weight=100):
    """What a client puts under its masks: quantised, with the weight in front; rounding is random, so to within one step."""
    ratio = round(weight / SETTINGS[Key.MAX_WEIGHT] * SETTINGS[Key.TARGET_RANGE])
    scaled = parameters_multiply(update, ratio / SETTINGS[Key.TARGET_RANGE])
    return factor_combine(ratio, quantize(scaled, SETTINGS[Key.CLIPPING_RANGE], SETTINGS[Key.TARGET_RANGE]))


class FlowerClient:
    """One client of Flower's protocol: its own functions over its own state."""

    def __init__(self, nid, **settings):
        self.state = flower.SecAggPlusState()
        self.state.nid = nid
        configs = {**SETTINGS, **settings}
        flower.check_configs(Stage.SETUP, configs)  # it finds nothing wrong
        self.keys = flower._setup(self.state, configs)

    def share_keys(self, keys):
        configs = {str(nid): [pair[Key.PUBLIC_KEY_1], pair[Key.PUBLIC_KEY_2]] for nid, pair in keys.items()}
        flower.check_configs(Stage.SHARE_KEYS, configs)
        return flower._share_keys(self.state, configs)

    def upload(self, sources=(), ciphertexts=()):
        configs = {Key.SOURCE_LIST: list(sources), Key.CIPHERTEXT_LIST: list(ciphertexts)}
        flower.check_configs(Stage.COLLECT_MASKED_VECTORS, configs)
        reply = flower._collect_masked_vectors(self.state, configs, 100, ndarrays_to_parameters(UPDATE))
        return [flower_array(data) for data in reply[Key.MASKED_PARAMETERS]]

    def unmask(self, active, dead):
        configs = {Key.ACTIVE_NODE_ID_LIST: list(active), Key.DEAD_NODE_ID_LIST: list(dead)}
        flower.check_configs(Stage.UNMASK, configs)
        reply = flower._unmask(self.state, configs)
        return list(zip(reply[Key.NODE_ID_LIST], reply[Key.SHARE_LIST], strict=True))


def flower_array(data):
    from flwr.common import bytes_to_ndarray

    return bytes_to_ndarray(data)


def bare(masked, seed, *, subtracted=()):
    """An upload without its masks; those of one secret are drawn array after array from one generator."""
    shapes = [array.shape for array in masked]
    result = [array.astype(np.int64) for array in masked]
    for sign, secret in ((-1, seed), *((1, secret) for secret in subtracted)):
        result = [array + sign * mask for array, mask in zip(result, pseudo_rand_gen(secret, RING, shapes), strict=True)]
    return [array % RING for array in result]


def is_the_update(masked_less):
    """Whether this is the client's own quantised update, to within the random rounding: the server can read it."""
    truth = [array.astype(np.int64) % RING for array in honest_sum(UPDATE)]
    difference = (masked_less[1] - truth[1] + RING // 2) % RING - RING // 2
    return bool(np.all(np.abs(difference) <= 1)) and masked_less[0] == truth[0]


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("flwr").setLevel(logging.ERROR)


# 1. Threshold, number of shares and neighbours come from the server, with no minimum at the client.


def test_flower_takes_a_threshold_of_one_and_no_neighbours_and_gives_its_seed_away():
    victim = FlowerClient(7, **{Key.THRESHOLD: 1, Key.SHARE_NUMBER: 2, Key.SAMPLE_NUMBER: 1})
    victim.share_keys({7: victim.keys})
    masked = victim.upload()
    ((_, share),) = victim.unmask([7], [])
    seed = combine_shares([share])  # one share of a threshold of one
    assert seed == victim.state.rd_seed
    assert is_the_update(bare(masked, seed))


def test_ours_refuses_a_threshold_of_the_servers_making_and_a_cohort_of_one():
    fed = Federation(num_clients=5, name="flower 1")
    for fields in ({"threshold": 1}, {"threshold": 2}, {"num_clients": 1, "threshold": 1}, {"num_clients": 1, "threshold": 2}):
        with pytest.raises(ConfigError):
            replace(fed.config, **fields)
    fed.run(Phase.SHARE_KEYS)
    request = ShareKeysRequest.decode(fed.requests[Phase.SHARE_KEYS][0])
    for count in (1, 2, 3):  # no neighbours, or fewer than the threshold
        with pytest.raises(PeerError, match="are needed"):
            fed.step(Phase.SHARE_KEYS, 0, replace(request, adverts=request.adverts[:count]).encode())


# 2. Advertised keys are unsigned: the server invents the neighbours.


def test_flower_takes_invented_neighbours_and_boxes_its_secrets_for_them():
    victim = FlowerClient(1)
    invented = {nid: (generate_key_pairs(), generate_key_pairs()) for nid in (2, 3)}
    keys = {1: victim.keys, **{nid: {Key.PUBLIC_KEY_1: public_key_to_bytes(one[1]), Key.PUBLIC_KEY_2: public_key_to_bytes(two[1])}
                               for nid, (one, two) in invented.items()}}  # fmt: skip
    reply = victim.share_keys(keys)
    shares = []
    for nid, ciphertext in zip(reply[Key.DESTINATION_LIST], reply[Key.CIPHERTEXT_LIST], strict=True):
        private = bytes_to_private_key(private_key_to_bytes(invented[nid][1][0]))
        box_key = generate_shared_key(private, bytes_to_public_key(victim.keys[Key.PUBLIC_KEY_2]))
        shares.append(share_keys_plaintext_separate(decrypt(box_key, ciphertext))[2:])
    assert combine_shares([seed_share for seed_share, _ in shares]) == victim.state.rd_seed  # already, before the upload
    assert combine_shares([key_share for _, key_share in shares]) == victim.state.sk1


def test_ours_takes_no_neighbour_that_the_roster_does_not_know():
    fed = Federation(num_clients=5, name="flower 2").run(Phase.SHARE_KEYS)
    request = ShareKeysRequest.decode(fed.requests[Phase.SHARE_KEYS][0])
    server = hostile.rounds.signer_of("the server")
    invented = list(request.adverts)
    for index in (1, 2, 3, 4):
        advert, _ = hostile.said(fed, Phase.ADVERTISE_KEYS, index, hostile.Advert)
        content = replace(advert, mask_key=bytes([9 + index]) + bytes(31), box_key=bytes([99 + index]) + bytes(31)).encode()
        invented[index] = SignedPart(content=content, signature=server.sign("fedsec/secagg/v1/sign-advert", content))
    with pytest.raises(PeerError, match="does not verify"):
        fed.step(Phase.SHARE_KEYS, 0, replace(request, adverts=tuple(invented)).encode())


# 3. The lists of active and dropped clients may overlap: both secrets of one client are released.


def test_flower_releases_both_secrets_of_one_client():
    clients = {nid: FlowerClient(nid) for nid in (1, 2, 3)}
    keys = {nid: client.keys for nid, client in clients.items()}
    boxes = {}
    for nid, client in clients.items():
        reply = client.share_keys(keys)
        boxes.update({(nid, to): box for to, box in zip(reply[Key.DESTINATION_LIST], reply[Key.CIPHERTEXT_LIST], strict=True)})
    masked = {}
    for nid, client in clients.items():
        sources = [other for other in clients if other != nid]
        masked[nid] = client.upload(sources, [boxes[other, nid] for other in sources])
    victim = 1
    seed_shares, key_shares = [], []
    for nid in (2, 3):
        released = clients[nid].unmask([1, 2, 3], [victim])  # active, and dropped as well
        seed_shares += [share for owner, share in released[:3] if owner == victim]
        key_shares += [share for owner, share in released[3:] if owner == victim]
    seed, private = combine_shares(seed_shares), combine_shares(key_shares)
    assert (seed, private) == (clients[victim].state.rd_seed, clients[victim].state.sk1)
    pairs = {nid: generate_shared_key(bytes_to_private_key(private), bytes_to_public_key(keys[nid][Key.PUBLIC_KEY_1])) for nid in (2, 3)}
    assert is_the_update(bare(masked[victim], seed, subtracted=list(pairs.values())))


def test_ours_releases_nothing_to_sets_that_overlap():
    fed = Federation(num_clients=5, name="flower 3").run(Phase.UNMASK)
    agreed = ConsistencyRequest.decode(fed.requests[Phase.CONSISTENCY_CHECK][0])
    request = UnmaskRequest.decode(fed.requests[Phase.UNMASK][0])
    for rejected in ((1,), (0,), (0, 1, 2, 3, 4)):
        for state in (fed.states[0], fed.states[0].sketched):
            with pytest.raises(PeerError):
                fed.step(Phase.UNMASK, 0, replace(request, rejected=rejected).encode(), state=state)
        before = fed.before[Phase.CONSISTENCY_CHECK][0]
        with pytest.raises(PeerError, match="each once"):
            fed.step(Phase.CONSISTENCY_CHECK, 0, replace(agreed, rejected=rejected).encode(), state=before)


# 4. A client that drops out in the first two stages makes every other one fail.


def test_flowers_clients_all_fail_at_unmask_where_one_of_the_sample_did_not_set_up():
    # Four are sampled, member 4 never answers the set-up. To the workflow "dead" is whoever was sampled and is not active, so it asks everybody for
    # a share of a key that nobody ever got.
    clients = {nid: FlowerClient(nid, **{Key.SAMPLE_NUMBER: 4, Key.SHARE_NUMBER: 4}) for nid in (1, 2, 3)}
    keys = {nid: client.keys for nid, client in clients.items()}
    replies = {nid: client.share_keys(keys) for nid, client in clients.items()}
    boxes = {
        (nid, to): box
        for nid, reply in replies.items()
        for to, box in zip(reply[Key.DESTINATION_LIST], reply[Key.CIPHERTEXT_LIST], strict=True)
    }
    for nid, client in clients.items():
        sources = [other for other in clients if other != nid]
        client.upload(sources, [boxes[other, nid] for other in sources])
        with pytest.raises(KeyError):
            client.unmask([1, 2, 3], [4])


@pytest.mark.parametrize("phase", [Phase.ADVERTISE_KEYS, Phase.SHARE_KEYS, Phase.MASKED_INPUT, Phase.SKETCH, Phase.UNMASK])
def test_ours_goes_on_where_somebody_drops_out_in_any_stage(phase):
    fed = Federation(num_clients=6, name="flower 4")  # N = 6, c = 1, t = 4: one drop-out beside a silent corrupt member
    assert fed.config.limits.tolerated_dropouts == 1
    opened = fed.finish(absent={phase: [2, 5]})
    assert np.array_equal(opened.total, fed.expected(opened.accepted))
    assert set(opened.accepted) == (set(range(6)) if phase is Phase.UNMASK else {0, 1, 3, 4})


# 5, 6, 8 in passing: what binds a message to its round, and what rides beside the vector.


def test_flowers_mask_has_a_seed_of_32_bits():
    seed = bytes(range(32))
    folded = bytes(28) + bytes(np.bitwise_xor.reduce(np.frombuffer(seed, dtype="<u4")).tobytes())
    assert np.array_equal(pseudo_rand_gen(seed, RING, [(50,)])[0], pseudo_rand_gen(folded, RING, [(50,)])[0])


def test_our_records_are_not_flowers():
    with pytest.raises(DecodeError):
        UnmaskRequest.decode(b"{}")
