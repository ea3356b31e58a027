"""What sketches alone give away: a server that asks for the same update again and again, each time with another R.

Digits, logistic regression (650 parameters), sketches of 128 numbers, a client with one record in every batch. Without differential privacy the
server sends the same model every round and has the update after six rounds. With DP-SGD every round has noise of its own.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedsec.codec import digest
from fedsec.data.federated import federated_data
from fedsec.models.factory import build_model
from fedsec.models.parameters import get_arrays
from fedsec.plan.load import load_plan
from fedsec.privacy.auditing.inversion import record_from_linear, update_from_sketches
from fedsec.privacy.auditing.pictures import psnr
from fedsec.privacy.calibration import calibrate_noise_multiplier
from fedsec.privacy.dpsgd import SgdSettings, train
from fedsec.privacy.streams import RoundStreams, derive_key, simulation_root
from fedsec.secagg.sketch import SketchMatrix
from fedsec.vectors import Layout

ROUNDS = 20
ROWS = 128


def psnr_by_round(seed: int, *, epsilon: float | None, victims: int = 10) -> dict[str, list[float]]:
    """Mean PSNR over victims after each round, and the baseline of the mean picture.

    Args:
        seed: of victims, noise and matrices.
        epsilon: spent over all rounds together, at the default plan's delta; None: no privacy.
        victims: records attacked, each in a client of its own.
    """
    plan = load_plan(None)
    dataset = federated_data(plan.data, num_clients=plan.federation.num_clients, seed=1).dataset
    sigma = 0.0
    if epsilon is not None:
        sigma = calibrate_noise_multiplier(epsilon=epsilon, delta=plan.privacy.delta, sample_rate=1.0, steps=ROUNDS)
    chosen = np.random.default_rng([seed, 62]).permutation(len(dataset.y_test))[:victims]
    scores = np.array([_attack(dataset.x_test[place], int(dataset.y_test[place]), seed, sigma, epsilon is not None) for place in chosen])
    mean = dataset.x.mean(axis=0)
    baseline = float(np.mean([psnr(mean, dataset.x_test[place]) for place in chosen]))
    return {"psnr": scores.mean(axis=0).tolist(), "baseline": [baseline]}


def _attack(record: npt.NDArray[np.float32], label: int, seed: int, sigma: float, private: bool) -> list[float]:
    sketches, matrices, scores = [], [], []
    for server_round in range(1, ROUNDS + 1):
        update, layout = _update(record, label, (str(seed), str(server_round), str(label)), sigma, private=private)
        matrix = SketchMatrix(
            seed=digest("fedsec/inversion-sketch/v1", str(seed).encode(), str(server_round).encode()), num_rows=ROWS, dimension=len(update)
        )
        matrices.append(matrix.entries(0, ROWS))
        sketches.append(matrices[-1] @ update)
        arrays = layout.unflatten(update_from_sketches(sketches, matrices))
        scores.append(psnr(record_from_linear(arrays["weight"], arrays["bias"]).reshape(record.shape), record))
    return scores


def _update(
    record: npt.NDArray[np.float32], label: int, labels: tuple[str, ...], sigma: float, *, private: bool
) -> tuple[npt.NDArray[np.float64], Layout]:
    model = build_model(load_plan(None).model, input_shape=record.shape, num_classes=10, seed=1)
    before = get_arrays(model, dict(model.named_parameters()))
    settings = SgdSettings(
        steps=1,
        sample_rate=1.0,
        batch_size=1,
        learning_rate=1.0,
        clip_norm=1.0 if private else None,
        noise_multiplier=sigma,
        clipping="bookkeeping",
    )
    key = derive_key(simulation_root(1), "sketch-inversion", *labels)
    train(model, record[None], np.array([label]), settings, streams=RoundStreams.derive(key))
    layout = Layout.of(before)
    return layout.flatten(get_arrays(model, before)).astype(np.float64) - layout.flatten(before), layout
