"""One point of a sweep, in a process of its own: run it and measure it, or audit it. Prints one JSON object.

1. A run is ``fedsec simulate`` of the point's plan; what is measured beside it reads the model it released and the simulated sites' test records.
2. A run and an audit are never the same process nor the same model: canaries in the training would change what is measured.

``python -m fedsec.cli.sweep_point check|run|audit|controls PLAN … --out DIR``
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fedsec.errors import FedsecError, StorageError

if TYPE_CHECKING:
    from fedsec.data.federated import FederatedData
    from fedsec.plan.model import Plan
    from fedsec.results import RunResult

ALONE_L2 = 10.0
"""Pull to zero of the fit of a site alone; the best of eight by cross-validation inside the training parts of Fed-Heart-Disease (experiments/heart_disease)."""


def main(words: list[str] | None = None) -> None:
    """Do what the arguments say."""
    parser = argparse.ArgumentParser(prog="sweep_point", description=__doc__)
    parser.add_argument("what", choices=("check", "run", "audit", "controls", "inversion"))
    parser.add_argument("plan", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--noise-only", default="")
    parser.add_argument("--kinds", default="one-run,loss-threshold")
    parser.add_argument("--canaries", type=int, default=4000)
    parser.add_argument("--shadow-models", type=int, default=16)
    parser.add_argument("--grid", default="{}")
    parser.add_argument("--delta", type=float, default=1e-5)
    arguments = parser.parse_args(words)
    try:
        value = {"check": check_points, "run": run_point, "inversion": invert_points}.get(arguments.what, audit_point)(arguments)
    except typer.Exit as stopped:
        sys.exit(stopped.exit_code)
    except FedsecError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(json.dumps(value, allow_nan=False))


def check_points(arguments: argparse.Namespace) -> dict[str, Any]:
    """Load the records and calibrate the noise of every point of ``{"plan": TOML, "points": [[name, overrides], …]}``.

    Raises:
        FedsecError: the records are not there, or a point cannot reach its epsilon; its name is in the message.
    """
    from fedsec.data.federated import federated_data
    from fedsec.errors import ConfigError
    from fedsec.plan.load import parse_plan
    from server.federation import noise_multiplier_of

    asked = json.loads(arguments.plan.read_text(encoding="utf-8"))
    base = parse_plan(asked["plan"])
    data = federated_data(base.data, num_clients=base.federation.num_clients, seed=base.federation.seed)
    for name, overrides in asked["points"]:
        try:
            noise_multiplier_of(parse_plan(asked["plan"], overrides=overrides))
        except ConfigError as error:
            raise ConfigError(f"{name}: {error.problem}", field=error.field, mend=error.mend) from None
    sizes = [len(part) for part in data.train_parts]
    records = {
        "name": data.dataset.name,
        "train": len(data.dataset.y),
        "test": len(data.dataset.y_test),
        "smallest_client": min(sizes),
        "largest_client": max(sizes),
        "fingerprint_of_first_seed": data.dataset.fingerprint,
    }
    return {"records": records, "warning": _delta_warning(base.privacy.delta, max(sizes))}


def _delta_warning(delta: float, largest: int) -> str:
    """Why a delta is too large for the largest client; empty where it is not."""
    if delta * largest < 1:
        return ""
    return (
        f"delta = {delta:g} is not below 1/{largest}, one over the records of the largest client: a mechanism that publishes each record whole with that "
        "probability would keep this promise; lower privacy.delta"
    )


def run_point(arguments: argparse.Namespace) -> dict[str, Any]:
    """The run's result, and what was measured beside it."""
    from fedsec.cli.simulate import EngineName, simulate
    from fedsec.environment import environment
    from fedsec.plan.load import load_plan
    from fedsec.results import RunResult

    plan = load_plan(arguments.plan, overrides=arguments.overrides)
    printed = io.StringIO()
    simulation = environment({"FEDSEC_SIMULATION": "1"})
    with simulation, _instruments(plan, arguments.noise_only), contextlib.redirect_stdout(printed):
        simulate(
            plan=arguments.plan,
            overrides=arguments.overrides,
            engine=EngineName.LOCAL,
            out=arguments.out,
            resume=not arguments.fresh,
            fresh=arguments.fresh,
            workers=1,
            data_root=None,
            as_json=True,
            quiet=True,
        )
    result = RunResult.from_json(json.loads(printed.getvalue()))
    return {"result": result.to_json(), "measured": measure(plan, result, arguments.out)}


def _instruments(plan: Plan, noise_only: str) -> contextlib.AbstractContextManager[None]:
    if not noise_only:
        return contextlib.nullcontext()
    from client.ablation import noise_in

    return noise_in(_model(plan), noise_only.split(","))


def _model(plan: Plan) -> Any:
    from fedsec.data.federated import federated_data
    from fedsec.models.factory import build_model

    dataset = federated_data(plan.data, num_clients=plan.federation.num_clients, seed=plan.federation.seed).dataset
    return build_model(plan.model, input_shape=dataset.input_shape, num_classes=dataset.num_classes, seed=plan.federation.seed)


def measure(plan: Plan, result: RunResult, folder: Path) -> dict[str, Any]:
    """Test records of each class, and how the released model does on each site's.

    Raises:
        StorageError: the released model cannot be read.
    """
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    from fedsec.data.federated import federated_data
    from fedsec.models.evaluation import evaluate
    from fedsec.models.parameters import set_arrays

    data = federated_data(plan.data, num_clients=plan.federation.num_clients, seed=plan.federation.seed)
    dataset, model = data.dataset, _model(plan)
    try:
        set_arrays(model, load_file(folder / "model.safetensors"))
    except (OSError, SafetensorError) as error:
        raise StorageError(f"cannot read the model that the run released: {error}") from error
    natural = plan.data.partition == "natural" and len(dataset.group_names) == len(data.train_parts)
    sites = []
    for index, (train, test) in enumerate(zip(data.train_parts, data.test_parts, strict=True)):
        records, (_, labels) = data.client_test_arrays(index), data.client_arrays(index)
        found = evaluate(model, *records, num_classes=dataset.num_classes)
        personal = (result.personal_accuracy or {}).get(f"client-{index:04d}") if plan.model.personal else None
        commonest = np.bincount(labels, minlength=dataset.num_classes).argmax()
        sites.append(
            {
                "name": dataset.group_names[index] if natural else f"client {index + 1}",
                "train": len(train),
                "test": len(test),
                "accuracy": found.accuracy,
                "personal": personal,
                "majority": float(np.mean(records[1] == commonest)),
                "local": _alone(plan, data, index) if natural and plan.model.name == "logistic" else None,
            }
        )
    counts = np.bincount(dataset.y_test, minlength=dataset.num_classes)
    return {"sites": sites, "class_tests": [int(count) for count in counts], "data_fingerprint": dataset.fingerprint}


def _alone(plan: Plan, data: FederatedData, index: int) -> float:
    """Accuracy of a model that a site fits to its own records alone."""
    from fedsec.models.evaluation import evaluate
    from fedsec.models.parameters import set_arrays
    from fedsec.models.personal import fit_personal

    model = _model(plan)
    set_arrays(model, fit_personal(model, ("weight", "bias"), *data.client_arrays(index), l2=ALONE_L2))
    return evaluate(model, *data.client_test_arrays(index), num_classes=data.dataset.num_classes).accuracy


def audit_point(arguments: argparse.Namespace) -> dict[str, Any]:
    """The report of one audit, or of the controls that every audit must catch."""
    from fedsec.plan.load import load_plan
    from fedsec.privacy.auditing.results import AuditReport
    from fedsec.sim.audit import audit_controls, audit_plan

    plan = load_plan(arguments.plan, overrides=arguments.overrides)
    seed, started = plan.federation.seed, time.perf_counter()
    if arguments.what == "controls":
        controls = audit_controls(plan, seed, canaries=arguments.canaries, delta=arguments.delta)
        report = AuditReport(
            plan_digest=plan.digest(), seed=seed, results=(), controls=controls, notes=(), duration_s=time.perf_counter() - started
        )
    else:
        report = audit_plan(
            plan,
            seed,
            kinds=tuple(arguments.kinds.split(",")),
            controls=(),
            canaries=arguments.canaries,
            delta=arguments.delta,
            shadow_models=arguments.shadow_models,
        )
    return {"report": report.to_json()}


def invert_points(arguments: argparse.Namespace) -> dict[str, Any]:
    """Pictures out of updates, over all epsilons and seeds of the sweep."""
    from fedsec.plan.load import load_plan
    from fedsec.plan.sweep import SweepGrid, plans_of_sweep
    from fedsec.plan.sweep_tasks import PICTURES, pictured_points
    from fedsec.sim.audit.inversion import invert

    base, grid = load_plan(arguments.plan), SweepGrid.from_json(json.loads(arguments.grid))
    plans = plans_of_sweep(base, grid)
    return {"report": invert([plans[point] for point in pictured_points(grid)], shape=PICTURES[base.data.name]).to_json()}


if __name__ == "__main__":
    main()
