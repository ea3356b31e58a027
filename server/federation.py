"""One run at the server, from plan to result folder: data for the test, model, sigma, loop, result."""

from __future__ import annotations

import contextlib
import json
import math
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
from flwr.serverapp import Grid

from fedsec.checkpoint import CheckpointStore
from fedsec.data.base import Dataset
from fedsec.errors import ConfigError, StorageError
from fedsec.files import atomic_write_json
from fedsec.flower.loop import CentralEvaluation, FederationLoop, LoopServices, Segments
from fedsec.flower.stages import SecureRounds
from fedsec.flower.state import ServerState
from fedsec.identity.verify import claimed_serial_number
from fedsec.models.evaluation import evaluate
from fedsec.models.factory import Model, build_model
from fedsec.models.mixing import refuse_mixing_layers
from fedsec.models.parameters import get_arrays, set_arrays, split_names
from fedsec.models.sparse import refuse_sparse_layers
from fedsec.plan.guarantees import guarantee_sentence
from fedsec.plan.model import Plan
from fedsec.privacy.accounting import Segment, epsilon_prv, epsilon_rdp
from fedsec.privacy.calibration import calibrate_noise_multiplier
from fedsec.results import EpsilonReport, RunResult
from fedsec.vectors import FloatArray, Layout
from server.artifacts import write_artifacts
from server.defence import build_defence, build_root_update, check_attack
from server.deployment import deployed_world
from server.evidence import evidence_keeper
from server.rejection import attack_success, rejection_report
from server.secure import build_secure_rounds
from server.session import current_session
from server.setup import DEPLOYMENT, ServerSetup
from server.simulated import simulated_world
from server.world import World

MOST_FOR_PRV = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class CentralEvaluator:
    """The server's own test set: all of it, and by site where records have natural owners.

    Personal parameters stand at their public constant here: the server knows no others.
    """

    model: Model
    dataset: Dataset
    device: str

    def __call__(self, arrays: dict[str, FloatArray]) -> CentralEvaluation:
        """Accuracy, loss and recall of a model given as arrays."""
        set_arrays(self.model, arrays)
        dataset = self.dataset
        whole = evaluate(self.model, dataset.x_test, dataset.y_test, num_classes=dataset.num_classes, device=self.device)
        sites: dict[str, float] | None = None
        if dataset.groups_test is not None:
            sites = {}
            for index, name in enumerate(dataset.group_names):
                rows = np.flatnonzero(dataset.groups_test == index)
                if not len(rows):
                    continue
                part = evaluate(self.model, dataset.x_test[rows], dataset.y_test[rows], num_classes=dataset.num_classes, device=self.device)
                sites[name] = part.accuracy
        return CentralEvaluation(accuracy=whole.accuracy, loss=whole.loss, recall=whole.recall, site_accuracy=sites)


def noise_multiplier_of(plan: Plan) -> float:
    """Sigma over clip norm of every step: fixed by the plan, or calibrated once for the whole run; 0 without privacy.

    Raises:
        ConfigError: the fixed sigma would spend more than the plan's epsilon, or no sigma reaches it.
    """
    if not plan.is_private:
        return 0.0
    privacy = plan.privacy
    if privacy.noise_multiplier is not None:
        whole = Segment(noise_multiplier=privacy.noise_multiplier, sample_rate=plan.training.sample_rate, steps=plan.total_steps)
        if (spent := epsilon_prv((whole,), privacy.delta)) > privacy.epsilon:
            raise ConfigError(
                f"{plan.total_steps} steps with this noise spend epsilon {spent:.4g}, over privacy.epsilon = {privacy.epsilon:g}",
                field="privacy.noise_multiplier",
                mend="raise it, run fewer steps, or leave it out and let it be calibrated",
            )
        return privacy.noise_multiplier

    return calibrate_noise_multiplier(
        epsilon=privacy.epsilon, delta=privacy.delta, sample_rate=plan.training.sample_rate, steps=plan.total_steps
    )


def _kept_noise_multiplier(plan: Plan, path: Path) -> float:
    """The run's sigma, kept with the run: another sixth digit after a resume would be another question to every client."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))["noise_multiplier"]
        if type(kept) is float:
            return kept
        raise StorageError(f"{path} is damaged; start a new run")
    except FileNotFoundError:
        sigma = noise_multiplier_of(plan)
        atomic_write_json(path, {"noise_multiplier": sigma})
        return sigma
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{path} is damaged ({error}); start a new run") from None


def run_federation(grid: Grid, setup: ServerSetup) -> RunResult:
    """Run or resume a plan and leave its result folder.

    Raises:
        FedsecError: whatever stopped the run; the folder can be resumed.
    """
    with setup.folder.lock(), contextlib.ExitStack() as cleanup:
        started = time.perf_counter()
        world = world_of(setup)
        loop, evaluator = _build_loop(world.way(grid), setup, world, cleanup)
        session = current_session()
        session.on_start(tuple(loop.state.rows))
        already_s = loop.state.elapsed_s
        finished = loop.run()
        result = _result(loop, evaluator, setup, world, finished=finished, duration_s=already_s + time.perf_counter() - started)
        write_artifacts(setup.folder.path, result, loop.layout.unflatten(loop.state.released()), world)
        session.result = result
        return result


def world_of(setup: ServerSetup) -> World:
    """What this run stands on. Which of the two it is was said by whoever started it, never by a client.

    Raises:
        FedsecError: it cannot be had; says why.
    """
    if setup.engine == DEPLOYMENT:
        return deployed_world(setup.plan, setup.folder, setup.home)
    return simulated_world(setup.plan, setup.folder)


def _build_loop(
    grid: Grid, setup: ServerSetup, world: World, cleanup: contextlib.ExitStack
) -> tuple[FederationLoop, CentralEvaluator]:  # fmt: skip
    plan, folder, session = setup.plan, setup.folder, current_session()
    dataset = world.dataset
    model = build_model(plan.model, input_shape=dataset.x_test.shape[1:], num_classes=dataset.num_classes, seed=plan.federation.seed)
    check_attack(plan, dataset.num_classes)
    refuse_mixing_layers(model, input_shape=dataset.x_test.shape[1:])
    shared, _ = split_names(model, plan.model.personal)
    if plan.secagg.enabled:
        refuse_sparse_layers(model, shared)
    arrays = get_arrays(model, shared)
    layout = Layout.of(arrays)
    checkpoints = CheckpointStore(folder.checkpoints, run_id=folder.run_id, plan_digest=plan.digest())
    checkpoint = checkpoints.load()
    state = ServerState.from_checkpoint(checkpoint, layout) if checkpoint is not None else ServerState.initial(layout.flatten(arrays))
    evaluator = CentralEvaluator(model=model, dataset=dataset, device=plan.training.device)
    services = LoopServices(
        evaluate=evaluator,
        epsilon=lambda segments: _epsilon(segments, plan.privacy.delta),
        on_round=session.on_round,
        on_answers=session.on_answers,
        stop=session.stop,
        note=session.note,
        keep_evidence=evidence_keeper(folder.path),
    )
    sigma = _kept_noise_multiplier(plan, folder.path / "noise.json")
    defence = build_defence(plan, sigma, state)
    secure: SecureRounds | None = None
    if plan.secagg.enabled:
        secure = build_secure_rounds(
            grid, plan, folder, world, dimension=layout.size, noise_multiplier=sigma, defence=defence, session=session, cleanup=cleanup
        )
    loop = FederationLoop(
        grid=grid,
        plan=plan,
        run_id=folder.run_id,
        noise_multiplier=sigma,
        layout=layout,
        state=state,
        checkpoints=checkpoints,
        services=services,
        defence=defence,
        weight_limit=world.weight_limit,
        simulation_dir=world.simulation_dir,
        secure=secure,
        root_update=build_root_update(plan, model, dataset, layout),
        attendance=world.attendance,
    )
    return loop, evaluator


def _epsilon(segments: Segments, delta: float) -> tuple[float, float]:
    spends = tuple(Segment(noise_multiplier=sigma, sample_rate=rate, steps=steps) for sigma, rate, steps in segments if steps)
    rdp = epsilon_rdp(spends, delta)
    # A client that ran many different plans: PRV would take minutes, and RDP is a bound as well.
    return (epsilon_prv(spends, delta) if len(spends) <= MOST_FOR_PRV else rdp), rdp


def _personal_results(loop: FederationLoop, finished: bool) -> dict[str, float] | None:
    plan = loop.plan
    if not finished:
        return None
    if plan.model.personal and plan.model.personal_fit == "after-release":
        loop.personalise()
    if not plan.federation.evaluate_clients:
        return None
    return {name: metrics.personal_accuracy for name, metrics in loop.evaluate_clients().items()}


def _result(
    loop: FederationLoop, evaluator: CentralEvaluator, setup: ServerSetup, world: World, *, finished: bool, duration_s: float
) -> RunResult:  # fmt: skip
    plan, dataset = loop.plan, world.dataset
    evaluation = evaluator(loop.layout.unflatten(loop.state.released()))  # leaves the released model in the evaluator
    y_test = dataset.y_test
    return RunResult(
        run_id=loop.run_id,
        plan_name=plan.name,
        plan_digest=plan.digest(),
        engine=setup.engine,
        num_clients=len(loop.clients) or plan.federation.num_clients,
        rounds=loop.state.server_round,
        accuracy=evaluation.accuracy,
        loss=evaluation.loss,
        recall=evaluation.recall,
        class_names=dataset.class_names,
        epsilon=_epsilon_report(loop),
        randomness=world.randomness,
        duration_s=duration_s,
        run_dir=str(setup.folder.path),
        site_accuracy=evaluation.site_accuracy,
        personal_accuracy=_personal_results(loop, finished),
        majority_accuracy=float(np.bincount(y_test, minlength=dataset.num_classes).max() / len(y_test)),
        rows=tuple(loop.state.rows),
        stopped_early=not finished,
        guarantee=guarantee_sentence(plan),
        rejection=rejection_report(
            plan,
            loop.defence,
            loop.state.rows,
            world.parts,
            attack_success=attack_success(plan, evaluator.model, dataset),
            certificates=_certificates(loop),
        ),
        versions={name: metadata.version(name) for name in ("fedsec", "flwr", "torch", "opacus", "numpy")},
    )


def _certificates(loop: FederationLoop) -> dict[str, str]:
    """Client id → serial number; empty where clients act without certificates."""
    if loop.secure is None:
        return {}
    return {name: claimed_serial_number(der) for name, der in loop.secure.membership.certificates.items()}


def _epsilon_report(loop: FederationLoop) -> EpsilonReport:
    privacy = loop.plan.privacy
    prv, rdp = loop.epsilon() if loop.plan.is_private else (math.inf, math.inf)
    return EpsilonReport(
        prv=prv,
        rdp=rdp,
        delta=privacy.delta if loop.plan.is_private else None,
        unit=privacy.unit,
        relation=privacy.neighboring_relation,
        noise_multiplier=loop.noise_multiplier,
        statement=guarantee_sentence(loop.plan),
    )
