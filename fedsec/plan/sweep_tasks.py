"""What a sweep has to do, task by task: runs, controls of the audit, audits, pictures; each with a key, so that nothing is done twice.

1. A run and an audit are different tasks with different processes: canaries in the training would change what the run measures.
2. Controls depend on the plan's shape and the seed, not on epsilon: once a seed.
3. Pictures out of updates (gradient inversion) take one step of a few clients each: one task for all epsilons and seeds, and only where an update of
   one picture can be undone by arithmetic (:func:`why_no_pictures`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from fedsec.codec import digest_json
from fedsec.plan.arms import ALL
from fedsec.plan.model import Plan
from fedsec.plan.sweep import INVERSION, SWEEP_FORMAT, Point, SweepGrid, point_key

What = Literal["run", "controls", "audit", "inversion"]
Task = tuple[What, Point]
ONE_RUN, LIRA = "one-run", "lira"
PICTURES = {"digits": (8, 8), "mnist": (28, 28), "fashion-mnist": (28, 28)}
"""Data sets of grey pictures with pixels from 0 to 1, and their height and width."""


def tasks_of(grid: SweepGrid) -> list[Task]:
    """All runs, then the controls of each seed, then an audit of every point with the whole model, then the pictures."""
    points = grid.points()
    tasks: list[Task] = [("run", point) for point in points]
    whole = [point for point in points if point.arm == ALL]
    if grid.attacks:
        if ONE_RUN in grid.attacks:
            tasks += [("controls", next(point for point in whole if point.seed == seed)) for seed in grid.seeds]
        tasks += [("audit", point) for point in whole]
    if INVERSION in grid.audits:
        tasks.append((INVERSION, whole[0]))
    return tasks


def pictured_points(grid: SweepGrid) -> list[Point]:
    """The points whose updates the pictures are made of: every epsilon and seed of the first choice of every varied setting."""
    return [point for point in grid.points() if point.arm == ALL and point.varied == grid.choices()[0]]


def why_no_pictures(plan: Plan) -> str:
    """Why updates of this plan are not turned into pictures; empty where they are."""
    if plan.data.name not in PICTURES or plan.data.transform != "none":
        return f"its records are no pictures: this is for {', '.join(PICTURES)}, without a feature map"
    if plan.model.name not in ("logistic", "mlp"):
        return "the attack undoes a linear first layer, and this model has none"
    if plan.model.personal:
        return "it needs the whole first update, and model.personal keeps a part of it at the client"
    return ""


def task_keys(grid: SweepGrid, plans: Mapping[Point, Plan]) -> dict[Task, str]:
    """Task → key: of the point, and for audits of how they are done."""
    return {task: _key(task, grid, plans) for task in tasks_of(grid)}


def _key(task: Task, grid: SweepGrid, plans: Mapping[Point, Plan]) -> str:
    what, point = task
    key = point_key(plans[point], point.arm)
    if what == "run":
        return key
    if what == INVERSION:
        return digest_json(SWEEP_FORMAT, {"what": what, "pictured": [point_key(plans[one], one.arm) for one in pictured_points(grid)]})
    kinds = list(grid.attacks) if what == "audit" else [ONE_RUN]
    how = {"shadow_models": grid.shadow_models} if LIRA in kinds else {}
    return digest_json(SWEEP_FORMAT, {"audited": key, "what": what, "kinds": kinds, "canaries": grid.canaries, **how})


def name_of(task: Task) -> str:
    """How a task is called in tables and in the list of failures."""
    what, point = task
    if what == "controls":
        return f"controls of the audit, seed {point.seed}"
    if what == INVERSION:
        return "pictures out of updates"
    return f"audit, {point}" if what == "audit" else str(point)
