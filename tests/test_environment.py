"""fedsec/environment.py."""

import os

import pytest

from fedsec.environment import environment


def test_variables_are_as_before_after_the_block_and_after_an_error_in_it(monkeypatch):
    monkeypatch.setenv("FEDSEC_PROBE", "before")
    monkeypatch.delenv("FEDSEC_OTHER", raising=False)
    with pytest.raises(KeyError), environment({"FEDSEC_PROBE": "within", "FEDSEC_OTHER": "within"}):
        assert (os.environ["FEDSEC_PROBE"], os.environ["FEDSEC_OTHER"]) == ("within", "within")
        raise KeyError
    assert os.environ["FEDSEC_PROBE"] == "before"
    assert "FEDSEC_OTHER" not in os.environ


def test_a_variable_that_the_block_itself_removed_stays_removed_without_an_error(monkeypatch):
    monkeypatch.delenv("FEDSEC_OTHER", raising=False)
    with environment({"FEDSEC_OTHER": "within"}):
        del os.environ["FEDSEC_OTHER"]
    assert "FEDSEC_OTHER" not in os.environ
