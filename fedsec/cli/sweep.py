"""``fedsec sweep``: the same federation at several epsilons and seeds, audited, and one page about what privacy costs."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from fedsec.plan.arms import Arm
    from fedsec.plan.model import Plan
    from fedsec.plan.sweep import SweepGrid

EPILOG = (
    "Examples:  fedsec sweep  ·  fedsec sweep my-plan.toml --epsilon 1,3,8,inf --seeds 5 --out runs/price  ·  "
    "fedsec sweep --vary training.clip_norm=0.5,1 --audit none  ·  fedsec sweep --set model.name=mlp --ablate layers --at inf:training.learning_rate=0.5  ·  "
    "the same command again goes on where it was stopped"
)
AUDITS = ("one-run", "loss-threshold", "lira", "inversion")
ABLATIONS = ("layers", "slices")


def sweep(
    plan: Path | None = typer.Argument(
        None, help="Plan file; the default plan, without attackers and masks, if left out.", show_default=False
    ),
    overrides: list[str] = typer.Option(
        [], "--set", help="Override one key, as section.key=value; may be given often.", show_default=False
    ),
    epsilon: str | None = typer.Option(None, help="Epsilons between commas; inf is the run without privacy. 0.5,1,2,4,8,inf if left out."),
    seeds: int = typer.Option(3, help="Seeds, from the plan's on; intervals need 3."),
    vary: list[str] = typer.Option([], help="Also vary a key, as section.key=a,b,c; may be given often.", show_default=False),
    at: list[str] = typer.Option(
        [], help="A setting for one epsilon alone, as EPSILON:section.key=value; may be given often.", show_default=False
    ),
    jobs: int | None = typer.Option(None, help="Runs at a time; one per core if left out.", show_default=False),
    audit: str | None = typer.Option(
        None,
        help=f"Audits between commas: {', '.join(AUDITS)}; or none. If left out: one-run, loss-threshold, and inversion where records are pictures.",
        show_default=False,
    ),
    canaries: int = typer.Option(4000, min=20, max=100_000, help="Canaries of an audit."),
    shadow_models: int = typer.Option(16, min=2, max=512, help="Shadow models of lira, each a whole training, for each ε and seed."),
    ablate: str | None = typer.Option(
        None, help="layers: which layer loses least under noise; slices: which classes and sites.", show_default=False
    ),
    out: Path | None = typer.Option(
        None, help="Folder of the sweep; runs/sweep-DIGEST if left out. Finished runs in it are kept.", show_default=False
    ),
    resume: bool = typer.Option(True, "--resume/--fresh", help="Go on with the sweep in the folder, or remove it first."),
    data_root: Path | None = typer.Option(
        None, help="Folder with the image sets; else $FEDSEC_DATA_ROOT, else a cache.", show_default=False
    ),
    as_json: bool = typer.Option(False, "--json", help="Print exactly one JSON object on stdout."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="No progress on stderr."),
) -> None:
    """Run a plan at several epsilons and seeds, audit it, and write one page: what privacy costs here, and what it is worth."""
    from fedsec.cli.attack import usable_cores
    from fedsec.cli.sweep_run import SweepOrder, run_sweep
    from fedsec.errors import ConfigError
    from fedsec.plan.load import load_plan
    from fedsec.plan.sweep import (
        AT,
        EPSILONS,
        PEACE,
        make_sweep,
        parse_at,
        parse_epsilons,
        parse_varied,
        plans_of_sweep,
        sweep_base,
        sweep_digest,
    )

    if jobs is not None and jobs < 1:
        raise ConfigError(f"{jobs} jobs run nothing", field="--jobs", mend="1 or more, or none for one per core")
    if data_root is not None:
        os.environ["FEDSEC_DATA_ROOT"] = str(data_root.absolute())
    asked = load_plan(plan, overrides=[*(PEACE if plan is None else ()), *overrides])
    epsilons = parse_epsilons(epsilon if epsilon is not None else EPSILONS)
    own = (
        {value: settings for value, settings in AT.items() if value in epsilons} if plan is None and not _is_other_model(overrides) else {}
    )
    base = sweep_base(asked)
    audits = _audits(audit, base)
    grid = make_sweep(
        base,
        epsilons=epsilons,
        seeds=seeds,
        varied=parse_varied(vary),
        arms=_arms(base, ablate, epsilons),
        at={**own, **parse_at(at)},
        audits=audits,
        canaries=canaries,
        shadow_models=shadow_models,
    )
    plans = plans_of_sweep(base, grid)
    folder = (out if out is not None else Path("runs") / f"sweep-{sweep_digest(base)[:10]}").absolute()
    order = SweepOrder(
        folder=folder, jobs=jobs or usable_cores(), fresh=not resume, as_json=as_json, quiet=quiet,
        command=_command(plan, overrides, epsilon or EPSILONS, seeds, vary, at, grid, ablate),
    )  # fmt: skip
    code = run_sweep(base, grid, plans, order)
    if code:
        raise typer.Exit(code)


def _is_other_model(overrides: list[str]) -> bool:
    """Whether a setting of the default plan that its learning rates were chosen for is another."""
    return any(override.strip().startswith(("model.", "data.", "training.")) for override in overrides)


def _names(words: str, known: tuple[str, ...], option: str) -> tuple[str, ...]:
    from fedsec.plan.grid import parse_names

    return () if words.strip() == "none" else parse_names(words, known=known, option=option)


def _audits(words: str | None, base: Plan) -> tuple[str, ...]:
    """The audits that are asked for; those of a sweep that asks for none in particular are the ones that fit its plan.

    Raises:
        ConfigError: an unknown one, or pictures of records that are none.
    """
    from fedsec.errors import ConfigError
    from fedsec.plan.sweep import INVERSION
    from fedsec.plan.sweep_tasks import why_no_pictures

    why = why_no_pictures(base)
    if words is None:
        return ("one-run", "loss-threshold", *(() if why else (INVERSION,)))
    names = _names(words, AUDITS, "--audit")
    if INVERSION in names and why:
        raise ConfigError(f"{INVERSION} does not fit this plan: {why}", field="--audit", mend="leave it out")
    return names


def _arms(base: Plan, ablate: str | None, epsilons: tuple[float, ...]) -> tuple[Arm, ...]:
    """The arms that the ablations ask for; what they measure needs the run without privacy."""
    from fedsec.errors import ConfigError
    from fedsec.plan.arms import ALL, layer_arms

    chosen = _names(ablate, ABLATIONS, "--ablate") if ablate is not None else ()
    if chosen and float("inf") not in epsilons:
        raise ConfigError(
            "what noise costs a part is measured from the run without privacy", field="--epsilon", mend="add inf to --epsilon"
        )
    return layer_arms(base) if "layers" in chosen else (ALL,)


def _command(
    plan: Path | None,
    overrides: list[str],
    epsilon: str,
    seeds: int,
    vary: list[str],
    at: list[str],
    grid: SweepGrid,
    ablate: str | None,
) -> str:
    """The command that makes this sweep, with nothing that matters left to a default."""
    words = ["fedsec", "sweep", *([plan.name] if plan is not None else [])]
    words += [word for override in overrides for word in ("--set", override)]
    words += ["--epsilon", epsilon, "--seeds", str(seeds)]
    words += [word for text in vary for word in ("--vary", text)]
    words += [word for text in at for word in ("--at", text)]
    words += ["--audit", ",".join(grid.audits) or "none", *(["--canaries", str(grid.canaries)] if grid.attacks else [])]
    words += ["--shadow-models", str(grid.shadow_models)] if "lira" in grid.attacks else []
    return shlex.join([*words, *(["--ablate", ablate] if ablate is not None else [])])
