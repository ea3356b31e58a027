"""What a site is told about its source before a round would end with it."""

import pytest

from client.localdata import load_source
from client.sourcecheck import facts_of

MODULE = """\
import numpy as np
def load():
    return {"x": np.random.default_rng(0).normal(size=(60, 4)).astype("float32"), "y": np.arange(60) % 3, "num_classes": 3}
def unlabelled():
    return {key: value for key, value in load().items() if key != "num_classes"}
def empty():
    return {key: value[:0] if key != "num_classes" else value for key, value in load().items()}
def breaks():
    raise OSError("the share is not mounted")
number = 5
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    (tmp_path / "sitemodule.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    load_source.cache_clear()


def test_records_are_counted(site):
    facts = facts_of("sitemodule:load")
    assert facts.keys() == {"records", "test_records", "classes"}
    assert (facts["records"] + facts["test_records"], facts["classes"]) == (60, 3)


@pytest.mark.parametrize(
    ("name", "says", "mend"),
    [
        ("sitemodule:unlabelled", "must give num_classes", "add num_classes"),
        ("sitemodule:empty", "too few records", ""),
        ("sitemodule:breaks", "the share is not mounted", ""),
        ("sitemodule:nothing", "has no 'nothing'", "name a function"),
        ("sitemodule:number", "not a function", "without arguments"),
        ("no_such_module_here:load", "no module 'no_such_module_here' among the installed packages", ""),
        ("no entry point", "no entry point", "module:function"),
    ],
)
def test_what_would_end_a_round_is_explained(site, name, says, mend):
    facts = facts_of(name)
    assert says in facts["error"]
    assert mend in facts["mend"]
    assert bool(mend) == bool(facts["mend"])
