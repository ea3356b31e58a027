"""Runs a module, or a command, so that fedsec's packages are loaded from their sources and from nothing else.

``python -P sourceonly.py MODULE [ARGUMENT …]``, or ``python -P sourceonly.py --command NAME [ARGUMENT …]`` for an installed command.

1. Admission hashes the source files of ``client``, ``fedsec`` and ``server``. Python runs a cache of byte code instead, if that says the source's time and
   size: whoever can write a ``__pycache__`` could have other code run than what was hashed. So caches of these packages are neither read
   nor written here, and a module of theirs that has no source is refused.
2. This file is run as a script, by its path: Python never takes a script from a cache. It imports the standard library only, before it looks
   after the rest.
3. Caches of other packages are read as ever: a manifest does not list their sources either.

Source: decision 0015, finding 9; importlib's documentation, ``SourceLoader.get_code``.
"""

from __future__ import annotations

import importlib.metadata
import runpy
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType, ModuleType

PACKAGES = frozenset({"client", "fedsec", "server"})
"""Those that a manifest lists; ``admission.installed.RUNTIME_PACKAGES``."""
COMMAND = "--command"


class SourceLoader(SourceFileLoader):
    """Compiles the source, whatever lies in a cache."""

    def get_code(self, fullname: str) -> CodeType:
        """See ``importlib.abc.InspectLoader``."""
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class SourceOnly:
    """Goes before all other finders: they find, it replaces the loader."""

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """See ``importlib.abc.MetaPathFinder``.

        Raises:
            ImportError: one of our modules without a source.
        """
        if fullname.partition(".")[0] not in PACKAGES:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = find(fullname, path, target) if find is not None and finder is not self else None
            if spec is not None:
                return _from_source(spec, fullname)
        return None


def _from_source(spec: ModuleSpec, fullname: str) -> ModuleSpec:
    if not isinstance(spec.loader, SourceFileLoader):
        raise ImportError(  # noqa: TRY004 - what an import raises
            f"{fullname} has no source file: {spec.origin}", name=fullname
        )
    spec.loader = SourceLoader(spec.loader.name, spec.loader.path)
    spec.cached = None
    return spec


def main() -> None:
    """Run what the arguments name."""
    sys.meta_path.insert(0, SourceOnly())
    if sys.argv[1] == COMMAND:
        sys.argv = sys.argv[2:]
        (entry,) = importlib.metadata.entry_points(group="console_scripts", name=sys.argv[0])
        sys.exit(entry.load()())
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
