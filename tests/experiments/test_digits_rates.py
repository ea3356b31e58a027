"""The search for learning rates: its copy of the training is the clients' own, nothing of a test part is scored, and the sweep takes what it found."""

import json
import math

import numpy as np
import pytest

from client.train import local_update
from experiments.digits import rates
from fedsec.data.federated import federated_data
from fedsec.data.sizes import simulated_batch_size
from fedsec.models.factory import build_model
from fedsec.plan.load import load_plan
from fedsec.plan.sweep import AT, PEACE
from fedsec.privacy.dpsgd import SgdSettings
from fedsec.privacy.streams import RoundStreams

PLAN = load_plan(overrides=[*PEACE, "federation.num_clients=4", "federation.rounds=2", "training.steps=2", "training.weight_cap=100.0"])


@pytest.fixture(scope="module")
def data():
    return federated_data(PLAN.data, num_clients=4, seed=1)


def test_the_stacked_training_is_that_of_the_clients(data):
    """Every record in every step and no noise: nothing random is left, and both must agree."""
    ours = rates.trained(
        PLAN, rates.Stack.of(PLAN, data, list(data.train_parts)), 3.0, sigma=0.0, generator=np.random.default_rng(0), sample_rate=1.0
    )
    model = build_model(PLAN.model, input_shape=data.dataset.input_shape, num_classes=10, seed=1)
    sizes = [simulated_batch_size(PLAN, data, place) for place in range(4)]
    now = {"weight": np.zeros((10, 64), dtype=np.float32), "bias": np.zeros(10, dtype=np.float32)}
    for server_round in range(2):
        total = {name: np.zeros(array.shape) for name, array in now.items()}
        for place, size in enumerate(sizes):
            for name, parameter in model.named_parameters():
                parameter.data.copy_(parameter.data.new_tensor(now[name]))
            settings = SgdSettings(
                steps=2, sample_rate=1.0, batch_size=size, learning_rate=3.0, clip_norm=1.0, noise_multiplier=0.0, clipping="bookkeeping"
            )
            update = local_update(
                model, *data.client_arrays(place), settings, shared_names=["weight", "bias"], streams=RoundStreams.derive(bytes(32))
            )
            for name in total:
                total[name] += np.asarray(update[name]) / sum(sizes)
        now = {name: (now[name] + total[name]).astype(np.float32) for name in now}
        assert ours[server_round][:, :64] == pytest.approx(now["weight"], abs=2e-4)
        assert ours[server_round][:, 64] == pytest.approx(now["bias"], abs=2e-4)


def test_nothing_of_any_test_part_is_scored_or_trained_on_twice(data):
    datas = [data, federated_data(PLAN.data, num_clients=4, seed=2)]
    fair = rates.in_no_test_part(datas)
    tested = {record.tobytes() for one in datas for record in one.dataset.x_test}
    scored = []
    for stack, held in rates.folds_of(PLAN, data, fair[0]):
        assert not tested & {record.tobytes() for record in data.dataset.x[held]}
        trained_on = {record.tobytes() for record in stack.x[stack.real][:, :-1]}
        assert not [index for index in held if data.dataset.x[index].tobytes() in trained_on]
        scored += list(held)
    assert len(set(scored)) == len(scored) == fair[0].sum()
    assert 0 < fair[0].sum() < len(fair[0])


def test_the_default_sweep_takes_the_best_rate_where_it_gains_a_point():
    lines = json.loads(rates.RESULTS.read_text(encoding="utf-8"))["lines"]
    for epsilon in (0.5, 1.0, 2.0, 4.0, 8.0):
        found = {line["learning_rate"]: line for line in lines if line["epsilon"] == epsilon and line["tail_average"] == 5}
        best, planned = max(found.values(), key=lambda line: line["accuracy"]), found[3.0]
        if best["accuracy"] - planned["accuracy"] > 0.01:
            assert AT[epsilon] == (f"training.learning_rate={best['learning_rate']}",)
            assert all(new > old for new, old in zip(best["by_seed"], planned["by_seed"], strict=True))
        else:
            assert epsilon not in AT
    assert math.inf in AT


def test_the_page_shows_the_lines():
    page = (rates.RESULTS.parent / "README.md").read_text(encoding="utf-8").partition("<!-- rates -->")[2].partition("<!-- /rates -->")[0]
    for line in json.loads(rates.RESULTS.read_text(encoding="utf-8"))["lines"]:
        if line["tail_average"] == 5:
            (row,) = [row for row in page.splitlines() if row.startswith(f"| {line['epsilon']:g} |")]
            place = 2 + rates.RATES.index(line["learning_rate"])
            assert float(row.split("|")[place].strip(" *%")) == pytest.approx(100 * line["accuracy"], abs=0.051)
