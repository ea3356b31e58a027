"""Every example in a docstring runs and gives what it says."""

import doctest
import importlib
import pkgutil

import pytest

import fedsec

MODULES = sorted(module.name for module in pkgutil.walk_packages(fedsec.__path__, "fedsec.") if not module.name.endswith("__main__"))


def test_there_are_examples():
    assert sum(len(doctest.DocTestFinder().find(importlib.import_module(name))) for name in ("fedsec.codec", "fedsec.robust.rules")) > 2


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_hold(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert result.failed == 0
