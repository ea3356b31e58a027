"""``fedsec plan``: what a plan guarantees, what its keys mean."""

from __future__ import annotations

import json
from pathlib import Path

import typer

app = typer.Typer(help="Check, show and explain plans.", no_args_is_help=True, rich_markup_mode=None)

SET_HELP = "Override one key, as section.key=value; may be given often."


@app.command(
    epilog="Examples:  fedsec plan check  ·  fedsec plan check my.toml --set privacy.epsilon=1  ·  fedsec plan check my.toml --json"
)
def check(
    plan: Path | None = typer.Argument(None, help="Plan file; the default plan if left out.", show_default=False),
    overrides: list[str] = typer.Option([], "--set", help=SET_HELP, show_default=False),
    as_json: bool = typer.Option(False, "--json", help="One JSON object on stdout."),
) -> None:
    """Say in words what the plan guarantees, or why it is refused and what would mend it."""
    from fedsec.plan.guarantees import guarantee_sentence, notes, secagg_facts
    from fedsec.plan.load import load_plan
    from server.federation import noise_multiplier_of
    from server.room import room_facts, room_sentence

    checked = load_plan(plan, overrides=overrides)
    sigma = noise_multiplier_of(checked)
    if as_json:
        facts = {
            "plan": checked.name,
            "digest": checked.digest(),
            "guarantee": guarantee_sentence(checked),
            "notes": list(notes(checked)),
            "noise_multiplier": sigma,
            "total_steps": checked.total_steps,
            "secagg": secagg_facts(checked),
            "room_to_hide": room_facts(checked),
        }
        print(json.dumps(facts, ensure_ascii=False))
        return
    print(f"{checked.name}: sound\n")
    print(guarantee_sentence(checked))
    for line in notes(checked):
        print(f"- {line}")
    if (room := room_sentence(checked)) is not None:
        print(f"- {room}")
    if checked.is_private:
        print(
            f"\nNoise multiplier {sigma:.4g} on a clip norm of {checked.privacy.clip_norm:g}, sample rate {checked.training.sample_rate:g}, "
            f"{checked.total_steps} steps a client ({checked.federation.rounds} rounds x {checked.training.steps})."
        )


@app.command(epilog="Examples:  fedsec plan show > my-plan.toml  ·  fedsec plan show my.toml --set federation.rounds=5")
def show(
    plan: Path | None = typer.Argument(None, help="Plan file; the default plan if left out.", show_default=False),
    overrides: list[str] = typer.Option([], "--set", help=SET_HELP, show_default=False),
) -> None:
    """Print the whole plan, every key, as TOML: a start for your own."""
    from fedsec.plan.load import load_plan, plan_to_toml

    print(plan_to_toml(load_plan(plan, overrides=overrides)), end="")


@app.command(epilog="Examples:  fedsec plan keys  ·  fedsec plan keys privacy")
def keys(
    section: str | None = typer.Argument(None, help="Only this section.", show_default=False),
) -> None:
    """List every key with its meaning and default."""
    from fedsec.errors import ConfigError
    from fedsec.plan.model import Plan

    sections = {name: field.annotation for name, field in Plan.model_fields.items() if name != "name"}
    if section is not None and section not in sections:
        raise ConfigError(f"there is no section [{section}]", mend=f"known: {', '.join(sections)}")
    for name, kind in sections.items():
        if section in (None, name) and kind is not None:
            print(f"[{name}]")
            for key, info in kind.model_fields.items():
                print(f"  {key} = {info.default!r}\n      {info.description}")
