"""``fedsec attack``: every attack against every rule, each a federation of its own, and one page about the worst case."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from fedsec.plan.grid import AttackGrid
    from fedsec.plan.model import Plan

EPILOG = (
    "Examples:  fedsec attack --list  ·  fedsec attack --attacks sign-flip,alie,label-flip --rules auto,multi-krum  ·  "
    "fedsec attack my-plan.toml --attacks alie --rules auto --fractions 0.1,0.2 --seeds 3 --out runs/grid  ·  "
    "fedsec attack --open --rules median,trimmed-mean  ·  the same command again goes on where it was stopped"
)
STOPPED_EXIT_CODE = 130
FAILED_EXIT_CODE = 1
ATTACKS = ("sign-flip", "alie", "label-flip")
"""Run when no attack is named, beside the plan's own: one that is loud, one that hides in the spread, one in the records."""


def attack(
    plan: Path | None = typer.Argument(None, help="Plan file; the default plan if left out.", show_default=False),
    overrides: list[str] = typer.Option(
        [], "--set", help="Override one key, as section.key=value; may be given often.", show_default=False
    ),
    attacks: str | None = typer.Option(
        None, help=f"Names between commas; the plan's and {','.join(ATTACKS)} if left out.", show_default=False
    ),
    rules: str | None = typer.Option(
        None, help="Names between commas; the plan's if left out. mean, which rejects nobody, always runs too.", show_default=False
    ),
    fractions: str | None = typer.Option(
        None, help="Shares of the clients that attack, between commas; the plan's if left out.", show_default=False
    ),
    seeds: int = typer.Option(1, help="Seeds, from the plan's on; intervals need 3."),
    jobs: int | None = typer.Option(None, help="Runs at a time; one per core if left out.", show_default=False),
    open_: bool = typer.Option(False, "--open", help="Without secure aggregation: rules see updates, not sketches."),
    out: Path | None = typer.Option(
        None, help="Folder of the grid; runs/attack-DIGEST if left out. Finished runs in it are kept.", show_default=False
    ),
    data_root: Path | None = typer.Option(
        None, help="Folder with the image sets; else $FEDSEC_DATA_ROOT, else a cache.", show_default=False
    ),
    list_all: bool = typer.Option(False, "--list", help="Explain every attack and every rule, and exit."),
    as_json: bool = typer.Option(False, "--json", help="Print exactly one JSON object on stdout."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="No progress on stderr."),
) -> None:
    """Run every attack against every rule, and write one page: which rule is best in the worst case, and what it costs."""
    if list_all:
        from fedsec.cli.attack_list import print_list

        print_list(as_json=as_json)
        return
    from fedsec.cli.attack_run import run_grid
    from fedsec.errors import ConfigError
    from fedsec.plan.grid import base_plan, grid_digest, plans_of
    from fedsec.plan.load import load_plan

    if jobs is not None and jobs < 1:
        raise ConfigError(f"{jobs} jobs run nothing", field="--jobs", mend="1 or more, or none for one per core")
    if data_root is not None:
        os.environ["FEDSEC_DATA_ROOT"] = str(data_root.absolute())
    settings = (*overrides, *(["secagg.enabled=false"] if open_ else []))
    asked = load_plan(plan, overrides=settings)
    grid = _grid(asked, attacks=attacks, rules=rules, fractions=fractions, seeds=seeds)
    base = base_plan(asked)
    plans = plans_of(base, grid)
    folder = (out if out is not None else Path("runs") / f"attack-{grid_digest(base)[:10]}").absolute()
    code = run_grid(
        base,
        grid,
        plans,
        folder=folder,
        jobs=jobs or usable_cores(),
        command=_command(plan, overrides, grid, is_open=open_),
        as_json=as_json,
        quiet=quiet,
    )
    if code:
        raise typer.Exit(code)


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _grid(plan: Plan, *, attacks: str | None, rules: str | None, fractions: str | None, seeds: int) -> AttackGrid:
    """What was asked for, and the plan's own where nothing was."""
    from fedsec.plan.grid import ATTACKS as KNOWN
    from fedsec.plan.grid import NO_ATTACK, RULES, make_grid, parse_fractions, parse_names

    own = [plan.attack.name] if plan.attack.name != NO_ATTACK else []
    return make_grid(
        plan,
        attacks=parse_names(attacks, known=KNOWN, option="--attacks") if attacks is not None else tuple(dict.fromkeys([*own, *ATTACKS])),
        rules=parse_names(rules, known=RULES, option="--rules") if rules is not None else (plan.robust.rule,),
        fractions=parse_fractions(fractions) if fractions is not None else (plan.attack.fraction,),
        seeds=seeds,
    )


def _command(plan: Path | None, overrides: list[str], grid: AttackGrid, *, is_open: bool) -> str:
    """The command that makes this grid, with nothing left to a default."""
    words = ["fedsec", "attack", *([str(plan)] if plan is not None else [])]
    words += [word for override in overrides for word in ("--set", override)]
    words += ["--attacks", ",".join(grid.attacks), "--rules", ",".join(grid.rules)]
    words += ["--fractions", ",".join(f"{fraction!r}" for fraction in grid.fractions), "--seeds", str(len(grid.seeds))]
    return shlex.join([*words, *(["--open"] if is_open else [])])
