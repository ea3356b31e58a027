"""``module:function``: found, or refused with the entry point's name and a mend; code of others never ends the program."""

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsec.data.entrypoint import call_entry_point, load_entry_point
from fedsec.errors import ConfigError, DataError

FRESH = itertools.count()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write a module of a fresh name into the current folder; gives the name."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> str:
        name = f"own_code_{next(FRESH)}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


def test_a_function_in_the_current_folder_is_found_and_called(module: Callable[[str], str]) -> None:
    name = module("def load():\n    return 42\n")
    before = list(sys.path)
    source = f"{name}:load"
    assert call_entry_point(load_entry_point(source, field="data.source"), source) == 42
    assert sys.path == before


def test_a_module_may_import_its_neighbours_also_while_it_runs(module: Callable[[str], str]) -> None:
    one, two = module("value = 1\n"), module("value = 2\n")
    name = module(f"import {one}\ndef load():\n    import {two}\n    return {one}.value + {two}.value\n")
    assert call_entry_point(load_entry_point(f"{name}:load", field="data.source"), name) == 3


def test_an_installed_module_is_found() -> None:
    assert load_entry_point("json.decoder:JSONDecoder", field="data.source") is not None


@pytest.mark.parametrize("source", ["", ":", "module", "module:", ":load", "module:load()", "module:a.b", "module:load:more"])
def test_what_is_no_entry_point_is_refused(source: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.source: .*is no entry point.*write module:function"):
        load_entry_point(source, field="data.source")


@pytest.mark.parametrize(
    "source", ["no_such_module:load", "json.no_such:load", "no_such.deeper:load", "..up:load", "/etc/passwd:load", "a..b:load"]
)
def test_a_module_that_does_not_exist_is_refused(source: str) -> None:
    with pytest.raises(ConfigError, match=r"^data\.source: ") as caught:
        load_entry_point(source, field="data.source")
    assert source in str(caught.value)


def test_a_missing_module_says_where_was_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"no module 'no_such_module' in {tmp_path} or among the installed packages"):
        load_entry_point("no_such_module:load", field="data.source")


def test_a_module_that_needs_what_is_not_installed_says_what(module: Callable[[str], str]) -> None:
    name = module("import not_installed_anywhere\n")
    with pytest.raises(ConfigError, match=r"needs 'not_installed_anywhere', which is not installed \(install not_installed_anywhere\)"):
        load_entry_point(f"{name}:load", field="data.source")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def load(:\n", "SyntaxError"),
        ("raise ValueError('no luck\\nmore')\n", "ValueError: no luck"),
        ("import sys\nsys.exit('bye')\n", "SystemExit: bye"),
        ("raise KeyError\n", "failed: KeyError"),
    ],
)
def test_a_module_that_fails_on_import_is_an_error_and_not_the_end(text: str, words: str, module: Callable[[str], str]) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        load_entry_point(f"{module(text)}:load", field="data.source")
    assert caught.value.__cause__ is not None


def test_a_name_that_is_missing_or_no_function_is_refused(module: Callable[[str], str]) -> None:
    name = module("load = 3\n")
    with pytest.raises(ConfigError, match="is a int, not a function"):
        load_entry_point(f"{name}:load", field="data.source")
    with pytest.raises(ConfigError, match=f"{name} has no 'lode'"):
        load_entry_point(f"{name}:lode", field="data.source")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise RuntimeError('disk on fire')", "failed: RuntimeError: disk on fire"),
        ("raise SystemExit(3)", "failed: SystemExit: 3"),
        ("return 1 / 0", "failed: ZeroDivisionError"),
    ],
)
def test_a_function_that_fails_is_a_data_error_that_names_it(body: str, words: str, module: Callable[[str], str]) -> None:
    source = f"{module(f'def load():{chr(10)}    {body}{chr(10)}')}:load"
    with pytest.raises(DataError, match=words) as caught:
        call_entry_point(load_entry_point(source, field="data.source"), source)
    assert str(caught.value).startswith(source)


def test_a_function_that_wants_arguments_is_a_data_error(module: Callable[[str], str]) -> None:
    source = f"{module('def load(path):' + chr(10) + '    return path' + chr(10))}:load"
    with pytest.raises(DataError, match="missing 1 required positional argument"):
        call_entry_point(load_entry_point(source, field="data.source"), source)
