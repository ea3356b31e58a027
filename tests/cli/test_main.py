"""The command line answers at once, explains itself with examples, and turns every error of ours into one line and an exit code."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from fedsec.cli.main import app
from fedsec.errors import ConfigError

RUNNER = CliRunner()


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "fedsec", *arguments], check=False, capture_output=True, text=True, timeout=120)


def test_help_loads_nothing_heavy():
    code = "import sys; sys.argv=['fedsec','--help']\nfrom fedsec.cli.main import run\ntry: run()\nexcept SystemExit: pass\nprint(sorted(m for m in ('torch','flwr','numpy','pydantic','matplotlib','sklearn','opacus','ray','grpc') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", [[], ["simulate"], ["plan"], ["plan", "check"], ["plan", "show"], ["plan", "keys"]])
def test_every_help_page_has_examples_or_names_its_commands(command):
    page = RUNNER.invoke(app, [*command, "--help"])
    assert page.exit_code == 0
    assert "Examples:" in page.output or command == ["plan"]


def test_the_version_is_the_packages():
    import fedsec

    assert RUNNER.invoke(app, ["--version"]).output == f"fedsec {fedsec.__version__}\n"


def test_an_error_of_ours_is_one_line_on_stderr_and_an_exit_code_and_never_a_traceback():
    done = run("plan", "show", "--set", "privacy.epsilom=1")
    assert done.returncode == ConfigError.exit_code
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert 'did you mean "epsilon"' in done.stderr
    assert "Traceback" not in done.stderr


def test_plan_show_prints_a_plan_that_reads_back(tmp_path):
    text = RUNNER.invoke(app, ["plan", "show", "--set", "federation.rounds=7"]).output
    path = tmp_path / "plan.toml"
    path.write_text(text)
    from fedsec.plan.load import load_plan

    assert load_plan(path).federation.rounds == 7


def test_plan_check_says_what_is_guaranteed_and_with_which_noise():
    page = RUNNER.invoke(app, ["plan", "check"])
    assert page.exit_code == 0, page.output
    for words in ("sound", "(8, 0.001)-differential privacy", "against the server", "Noise multiplier 1.1", "60 steps"):
        assert words in page.output


def test_plan_check_json_is_one_object():
    facts = json.loads(RUNNER.invoke(app, ["plan", "check", "--json"]).output)
    assert facts["total_steps"] == 60
    assert 1.0 < facts["noise_multiplier"] < 1.3


def test_plan_check_refuses_a_fixed_noise_that_spends_more_than_the_plan_says():
    page = RUNNER.invoke(app, ["plan", "check", "--set", "privacy.noise_multiplier=0.5"])
    assert isinstance(page.exception, ConfigError)
    assert page.exception.field == "privacy.noise_multiplier"


def test_plan_keys_lists_every_key_and_refuses_an_unknown_section():
    page = RUNNER.invoke(app, ["plan", "keys", "privacy"])
    assert "epsilon = 8.0" in page.output
    assert "[data]" not in page.output
    assert isinstance(RUNNER.invoke(app, ["plan", "keys", "nope"]).exception, ConfigError)


@pytest.mark.parametrize(
    "arguments", [["simulate", "/no/such/plan.toml"], ["simulate", "--engine", "cloud"], ["simulate", "--workers", "0"], ["nonsense"]]
)
def test_bad_arguments_exit_with_two(arguments):
    assert run(*arguments).returncode == 2


def test_missing_image_files_are_named_with_the_mend(tmp_path):
    done = run("simulate", "--set", "data.name=mnist", "--data-root", str(tmp_path), "--out", str(tmp_path / "run"))
    assert done.returncode == 1
    assert "mnist" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
