"""What a sweep has to do, task by task: runs, controls of the audit, audits; each with a key, so that nothing is done twice.

1. A run and an audit are different tasks with different processes: canaries in the training would change what the run measures.
2. Controls depend on the plan's shape and the seed, not on epsilon: once a seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from fedsec.codec import digest_json
from fedsec.plan.arms import ALL
from fedsec.plan.model import Plan
from fedsec.plan.sweep import SWEEP_FORMAT, Point, SweepGrid, point_key

What = Literal["run", "controls", "audit"]
Task = tuple[What, Point]
ONE_RUN = "one-run"


def tasks_of(grid: SweepGrid) -> list[Task]:
    """All runs, then the controls of each seed, then an audit of every point with the whole model."""
    points = grid.points()
    tasks: list[Task] = [("run", point) for point in points]
    if grid.audits:
        whole = [point for point in points if point.arm == ALL]
        if ONE_RUN in grid.audits:
            tasks += [("controls", next(point for point in whole if point.seed == seed)) for seed in grid.seeds]
        tasks += [("audit", point) for point in whole]
    return tasks


def task_keys(grid: SweepGrid, plans: Mapping[Point, Plan]) -> dict[Task, str]:
    """Task → key: of the point, and for audits of how they are done."""
    return {task: _key(task, grid, plans) for task in tasks_of(grid)}


def _key(task: Task, grid: SweepGrid, plans: Mapping[Point, Plan]) -> str:
    what, point = task
    key = point_key(plans[point], point.arm)
    if what == "run":
        return key
    kinds = list(grid.audits) if what == "audit" else [ONE_RUN]
    return digest_json(SWEEP_FORMAT, {"audited": key, "what": what, "kinds": kinds, "canaries": grid.canaries})


def name_of(task: Task) -> str:
    """How a task is called in tables and in the list of failures."""
    what, point = task
    if what == "controls":
        return f"controls of the audit, seed {point.seed}"
    return f"audit, {point}" if what == "audit" else str(point)
