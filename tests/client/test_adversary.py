"""Simulated attackers: who attacks when, what the crew shares, and that honest clients never notice."""

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from client import adversary
from client.localdata import declared_batch_size, local_data
from client.rounds import plain_update
from client.settings import DeployedClient, SimulatedClient
from fedsec.errors import PeerError
from fedsec.flower import compat, records
from fedsec.plan.load import load_plan
from fedsec.plan.robust import MALFORMED_ATTACKS
from fedsec.robust.validation import validate_update
from fedsec.sim.attacks.catalogue import CATALOGUE, attackers
from fedsec.vectors import Layout, arrays_digest

BASE = ["federation.num_clients=8", "secagg.enabled=false", "training.steps=1", "privacy.noise_multiplier=2.0", "privacy.epsilon=50"]
MODEL = {"weight": np.zeros((10, 64), np.float32), "bias": np.zeros(10, np.float32)}
LAYOUT = Layout.of(MODEL)


@pytest.fixture(autouse=True)
def _identity(monkeypatch):
    monkeypatch.setenv("FEDSEC_SIMULATION", "1")
    with compat.task_identity(7):
        yield


def plan(*more):
    return load_plan(overrides=[*BASE, "attack.name=sign-flip", "attack.fraction=0.25", "attack.own_noise=false", *more])


def request(of, server_round=1, folder=""):
    return records.RoundRequest(
        run_id="r", server_round=server_round, plan_json=records.plan_to_canonical(of), noise_multiplier=2.0,
        model_hash=arrays_digest(MODEL), simulation_dir=str(folder),
    )  # fmt: skip


def crew(of, place=0, server_round=1):
    partition = attackers(8, of.attack.fraction, of.federation.seed)[place]
    return adversary.crew_of(of, SimulatedClient(partition=partition, num_partitions=8), server_round)


def sent(of, place=0, server_round=1, folder=""):
    adversary._sent.cache_clear()
    arrays, size = adversary.crafted(of, request(of, server_round, folder), MODEL, crew(of, place, server_round), plain_update)
    return LAYOUT.flatten(arrays), size


def honest_rows(of, server_round=1):
    bad = attackers(8, of.attack.fraction, of.federation.seed)
    round_ = adversary._Round(
        plan=of, request=request(of, server_round), arrays=MODEL, crew=adversary.Crew(partitions=bad, place=0), train=plain_update
    )  # fmt: skip
    return adversary._updates(round_, tuple(place for place in range(8) if place not in bad))


def test_only_simulated_clients_of_the_crew_attack_and_only_in_their_rounds():
    of = plan("attack.first_round=2", "attack.rounds_on=1", "attack.rounds_off=1")
    bad = attackers(8, 0.25, of.federation.seed)
    assert len(bad) == 2
    attacking = {(place, number) for place in range(8) for number in range(1, 6)
                 if adversary.crew_of(of, SimulatedClient(partition=place, num_partitions=8), number)}  # fmt: skip
    assert attacking == {(place, number) for place in bad for number in (2, 4)}
    deployed = DeployedClient(client_id="client-0001", home=None, source="m:f", batch_size=1, policy=None)
    assert adversary.crew_of(of, deployed, 2) is None


def test_an_omniscient_sign_flip_is_minus_five_times_the_mean_of_what_honest_clients_really_send():
    of = plan("attack.strength=5")
    rows, sizes = honest_rows(of)
    vector, size = sent(of)
    np.testing.assert_allclose(vector, -5 * (rows / sizes[:, None]).mean(axis=0) * size, rtol=1e-4, atol=1e-4)


def test_what_attackers_take_for_honest_updates_are_those_that_the_clients_send(tmp_path):
    from client.rounds import answer_train

    of = plan()
    rows, _ = honest_rows(of)
    bad = attackers(8, 0.25, of.federation.seed)
    place = next(p for p in range(8) if p not in bad)
    message = records.make_request(request(of, folder=tmp_path), node_id=1, message_type="train", arrays=records.arrays_to_record(MODEL))
    compat.assign_message_id(message, "m")
    reply = answer_train(message, {"partition-id": place, "num-partitions": 8})
    vector = LAYOUT.flatten(records.read_update(reply, sender="x"))
    np.testing.assert_array_equal(vector, rows[[p for p in range(8) if p not in bad].index(place)])


def test_partial_attackers_reckon_with_their_own_updates_alone():
    of = plan("attack.knowledge=partial", "attack.strength=1")
    bad = attackers(8, 0.25, of.federation.seed)
    round_ = adversary._Round(plan=of, request=request(of), arrays=MODEL, crew=adversary.Crew(partitions=bad, place=0), train=plain_update)
    own, sizes = adversary._updates(round_, bad)
    vector, size = sent(of)
    np.testing.assert_allclose(vector, -(own / sizes[:, None]).mean(axis=0) * size, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(name for name, info in CATALOGUE.items() if info.family in ("model", "data", "backdoor")))
@pytest.mark.parametrize("private", [True, False])
def test_every_attack_on_updates_is_deterministic_finite_and_passes_validation(name, private, tmp_path):
    public = [] if private else ["privacy.unit=none", "privacy.epsilon=inf"]
    base = [line for line in BASE if private or ("noise_multiplier" not in line and "epsilon" not in line)]
    of = load_plan(overrides=[*base, f"attack.name={name}", "attack.fraction=0.25", *public])
    for place in (0, 1):
        (one, size), (other, _) = sent(of, place, folder=tmp_path / "a"), sent(of, place, folder=tmp_path / "b")
        np.testing.assert_array_equal(one, other)
        validate_update("client-0000", LAYOUT.unflatten(one), size, layout=LAYOUT)


def test_data_attacks_change_labels_or_records_and_leave_the_originals_alone():
    for name in ("label-flip", "backdoor", "dba"):
        of = plan(f"attack.name={name}")
        member = crew(of)
        data = local_data(of, SimulatedClient(partition=member.partitions[0], num_partitions=8))
        x, y = data.x.copy(), data.y.copy()
        changed = adversary.poisoned(of, member, data)
        assert not (np.array_equal(changed.x, x) and np.array_equal(changed.y, y))
        np.testing.assert_array_equal(data.x, x)
        np.testing.assert_array_equal(data.y, y)


def asked():
    message = Message(RecordDict({"config": ConfigRecord({})}), dst_node_id=1, message_type="train")
    compat.assign_message_id(message, "m")
    return message


@pytest.mark.parametrize("name", [name for name in MALFORMED_ATTACKS if name not in ("denormal", "duplicate-names")])
def test_every_malformed_message_is_refused_with_its_sender(name):
    of = plan(f"attack.name={name}")
    member = SimulatedClient(partition=attackers(8, 0.25, of.federation.seed)[0], num_partitions=8)
    about = records.About(client_id=member.client_id, run_id="r", server_round=1, batch_size=40, randomness="simulation seed")
    reply = adversary.reply_in_clear(asked(), of, member, about, {key: value + 0.5 for key, value in MODEL.items()})
    with pytest.raises(PeerError) as caught:
        told = records.read_about(reply, sender=member.client_id, phase="train")
        validate_update(member.client_id, records.read_update(reply, sender=member.client_id), told.batch_size, layout=LAYOUT)
    assert caught.value.client_id == member.client_id


@pytest.mark.parametrize("name", ["denormal", "duplicate-names"])
def test_what_is_odd_but_sound_passes(name):
    of = plan(f"attack.name={name}")
    member = SimulatedClient(partition=attackers(8, 0.25, of.federation.seed)[0], num_partitions=8)
    about = records.About(client_id=member.client_id, run_id="r", server_round=1, batch_size=40, randomness="simulation seed")
    reply = adversary.reply_in_clear(asked(), of, member, about, {key: value + 0.5 for key, value in MODEL.items()})
    assert isinstance(reply.content["update"], ArrayRecord)
    validate_update(member.client_id, records.read_update(reply, sender=member.client_id), 40, layout=LAYOUT)


def test_dilution_declares_as_much_as_the_federation_lets_anybody():
    member = SimulatedClient(partition=attackers(8, 0.25, plan().federation.seed)[0], num_partitions=8)
    honest, attack = declared_batch_size(plan(), member), ["attack.name=dilution", "attack.strength=20"]
    assert declared_batch_size(plan(*attack), member) == honest  # all declare the same: there is no more to declare
    sizes = [declared_batch_size(plan("training.batch_size=per-client"), SimulatedClient(partition=p, num_partitions=8)) for p in range(8)]
    assert declared_batch_size(plan(*attack, "training.batch_size=per-client"), member) == max(sizes)
    masked = [*attack, "secagg.enabled=true", "secagg.num_corrupt=1"]
    assert declared_batch_size(plan(*masked, "secagg.weight_limit=100"), member) == 100


def test_replay_sends_what_was_kept_of_an_earlier_round(tmp_path):
    of = plan("attack.name=replay", "attack.strength=1")
    first, _ = sent(of, 0, 1, tmp_path)
    second, _ = sent(of, 0, 2, tmp_path)
    np.testing.assert_allclose(second, first, rtol=1e-5, atol=1e-6)
    fresh, _ = sent(plan("attack.name=sign-flip"), 0, 2, tmp_path)
    assert not np.allclose(second, fresh)
