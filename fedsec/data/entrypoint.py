"""Own code by name: import ``module:function`` from the current folder or what is installed, and call it.

1. The current folder is searched first, as ``python -m`` does, and only while the module is imported and the function runs.
2. Whatever goes wrong inside is reported as an error of that entry point, the original one chained to it; a ``sys.exit`` there does
   not end the program in silence.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fedsec.errors import ConfigError, DataError


@contextlib.contextmanager
def current_folder_importable() -> Iterator[None]:
    """Search the current folder first while the block runs."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    importlib.invalidate_caches()  # a module written since the last import must be seen
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the user's code may have taken it out itself
            sys.path.remove(here)


def load_entry_point(source: str, *, field: str) -> Callable[..., Any]:
    """The function that ``module:function`` names.

    Args:
        source: the entry point.
        field: ``section.key`` that holds it, for the error.

    Raises:
        ConfigError: not of this form, no such module or function, an error while importing it, or not callable.
    """
    module_name, separator, function_name = source.partition(":")
    if not separator or not module_name or not function_name.isidentifier():
        raise ConfigError(f"{source!r} is no entry point", field=field, mend="write module:function, for example mypackage.data:load")
    with current_folder_importable():
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
                raise ConfigError(
                    f"{source}: there is no module {error.name!r} in {Path.cwd()} or among the installed packages",
                    field=field,
                    mend="run from the folder that holds it, or install the package",
                ) from error
            raise ConfigError(
                f"{source}: importing {module_name} needs {error.name!r}, which is not installed", field=field, mend=f"install {error.name}"
            ) from error
        except (Exception, SystemExit) as error:
            raise ConfigError(
                f"{source}: importing {module_name} failed: {_short(error)}", field=field, mend="mend the module; the cause is chained"
            ) from error
    function = getattr(module, function_name, None)
    if function is None:
        raise ConfigError(f"{source}: {module_name} has no {function_name!r}", field=field, mend="name a function of that module")
    if not callable(function):
        raise ConfigError(
            f"{source} is a {type(function).__name__}, not a function",
            field=field,
            mend="name a function that can be called without arguments",
        )
    entry: Callable[..., Any] = function
    return entry


def call_entry_point(function: Callable[..., Any], source: str) -> Any:
    """Call an entry point without arguments.

    Raises:
        DataError: it raised, or tried to end the program.
    """
    with current_folder_importable():
        try:
            return function()
        except (Exception, SystemExit) as error:
            raise DataError(f"{source} failed: {_short(error)}") from error


def _short(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__
