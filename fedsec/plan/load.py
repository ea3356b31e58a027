"""TOML to ``Plan`` and back: the one place where text becomes a plan.

1. An error names file, section, key, what is wrong, and the nearest valid key.
2. ``--set section.key=value`` overrides are TOML values; a bare word is taken as a string.
3. ``plan_to_toml`` writes every key, so a stored plan runs the same whatever the defaults become.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedsec.errors import ConfigError
from fedsec.plan.model import Plan

MAX_PLAN_BYTES = 256 * 1024
"""A plan is a page of text; anything longer is a mistake or an attack on the parser."""

_SECTIONS = {name: field.annotation for name, field in Plan.model_fields.items() if name != "name"}


def default_plan_text() -> str:
    """The plan that ``fedsec simulate`` runs when it is given none."""
    return resources.files("fedsec.plan").joinpath("default.toml").read_text(encoding="utf-8")


def load_plan(path: Path | None = None, *, overrides: Iterable[str] = ()) -> Plan:
    """Read a plan file (or the default plan) and apply ``section.key=value`` overrides.

    Raises:
        ConfigError: unreadable file, bad TOML, unknown or ill-typed key, or an unsound plan.
    """
    if path is None:
        return parse_plan(default_plan_text(), file="default plan", overrides=overrides)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the plan: {error.strerror or error}", file=str(path), mend="check the path") from error
    if len(data) > MAX_PLAN_BYTES:
        raise ConfigError(
            f"a plan of {len(data)} bytes is over the limit of {MAX_PLAN_BYTES}", file=str(path), mend="is this the right file?"
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError("is not UTF-8 text", file=str(path), mend="save it as UTF-8") from None
    return parse_plan(text, file=str(path), overrides=overrides)


def parse_plan(text: str, *, file: str | None = None, overrides: Iterable[str] = ()) -> Plan:
    """Parse TOML text into a plan; see :func:`load_plan`."""
    if len(text) > MAX_PLAN_BYTES:
        raise ConfigError(f"a plan of {len(text)} characters is over the limit of {MAX_PLAN_BYTES}", file=file)
    try:
        raw = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"is not valid TOML: {error}", file=file, mend="mend the line it names") from None
    for override in overrides:
        _apply_override(raw, override)
    return plan_from_mapping(raw, file=file)


def plan_from_mapping(raw: Mapping[str, Any], *, file: str | None = None) -> Plan:
    """Validate nested dicts into a plan.

    Raises:
        ConfigError: with file, field and the nearest valid key.
    """
    _check_names(raw, file)
    try:
        return Plan.model_validate(dict(raw))
    except ValidationError as error:
        raise _explain(error, file) from None
    except ConfigError as error:
        raise ConfigError(error.problem, field=error.field, mend=error.mend, file=file) from None


def plan_to_toml(plan: Plan) -> str:
    """Every key of the plan as TOML; ``parse_plan`` of it gives an equal plan."""
    import tomli_w  # noqa: PLC0415 - only runs that write a plan need it

    return tomli_w.dumps(plan.model_dump(mode="python", exclude_none=True))


def _check_names(raw: Mapping[str, Any], file: str | None) -> None:
    for section, content in raw.items():
        if section == "name":
            continue
        if section not in _SECTIONS:
            raise ConfigError(f"unknown section [{section[:60]}]", file=file, mend=_nearest(section, [*_SECTIONS, "name"]))
        if not isinstance(content, Mapping):
            raise ConfigError(
                f"[{section}] must be a table of keys", file=file, field=section, mend=f"write [{section}] on a line of its own"
            )
        keys = list(Plan.model_fields[section].annotation.model_fields)  # type: ignore[union-attr]
        for key in content:
            if key not in keys:
                raise ConfigError(
                    f'unknown key "{key[:60]}" in [{section}]', file=file, field=f"{section}.{key[:60]}", mend=_nearest(key, keys)
                )


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f'did you mean "{close[0]}"?' if close else f"known: {', '.join(sorted(known))}"


def _explain(error: ValidationError, file: str | None) -> ConfigError:
    """The first fault of a pydantic error as one sentence."""
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        return ConfigError(cause.problem, field=cause.field, mend=cause.mend, file=file)
    location = [str(part) for part in first["loc"]]
    field = ".".join(location[:2])
    shown = repr(first.get("input"))
    value = shown if len(shown) <= 60 else shown[:57] + "..."
    message = str(cause) if cause is not None else first["msg"][:1].lower() + first["msg"][1:]
    mend = None
    if len(location) >= 2 and location[0] in _SECTIONS:
        info = Plan.model_fields[location[0]].annotation.model_fields.get(location[1])  # type: ignore[union-attr]
        mend = f"{info.description}; default {info.default!r}" if info is not None else None
    return ConfigError(f"{value}: {message}", field=field, mend=mend, file=file)


def _apply_override(raw: dict[str, Any], override: str) -> None:
    name, separator, text = override.partition("=")
    parts = name.strip().split(".")
    if not separator or len(parts) not in (1, 2) or not all(parts) or (len(parts) == 1 and parts[0] != "name"):
        raise ConfigError(f'"{override[:80]}" is not section.key=value', field="--set", mend="for example --set privacy.epsilon=4")
    value = parse_value(text.strip())
    if len(parts) == 1:
        raw["name"] = value
        return
    section = raw.setdefault(parts[0], {})
    if not isinstance(section, dict):
        raise ConfigError(f"[{parts[0]}] is not a table", field="--set")
    section[parts[1]] = value


def parse_value(text: str) -> Any:
    """A TOML value (number, bool, string, array), or the text itself when it is none; ``inf`` is infinity."""
    try:
        return tomllib.loads(f"value = {text}")["value"] if "\n" not in text else text
    except (tomllib.TOMLDecodeError, RecursionError):
        return math.inf if text in ("inf", "+inf") else text
