"""Own models: what a factory may do, and that every failure names the entry point and the field."""

import sys
import textwrap

import pytest
import torch

from fedsec.errors import ConfigError
from fedsec.models.factory import build_model
from fedsec.models.parameters import get_arrays
from fedsec.plan.sections import ModelSection
from fedsec.vectors import arrays_digest

MODULE = "own_nets_for_test"

GOOD = """
    import torch
    from torch import nn

    def build(input_shape, num_classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0] * input_shape[1], num_classes))

    def lazy(input_shape, num_classes):
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes), nn.Dropout(0.5))
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write the module with the own models into the current folder."""
    monkeypatch.chdir(tmp_path)

    def _write(source: str) -> None:
        (tmp_path / f"{MODULE}.py").write_text(textwrap.dedent(source), encoding="utf-8")

    yield _write
    sys.modules.pop(MODULE, None)


def build(function: str = "build", *, seed: int = 1, module: str = MODULE):
    section = ModelSection(name="custom", factory=f"{module}:{function}")
    return build_model(section, input_shape=(4, 5), num_classes=3, seed=seed)


@pytest.mark.parametrize("function", ["build", "lazy"])
def test_own_model_follows_the_seed_and_leaves_the_global_generator(write, function):
    write(GOOD)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build(function)
    assert torch.equal(before, torch.get_rng_state())
    assert first.training
    assert first(torch.rand(2, 4, 5)).shape == (2, 3)
    torch.manual_seed(6)
    names = [name for name, _ in first.named_parameters()]
    digests = [arrays_digest(get_arrays(model, names)) for model in (first, build(function), build(function, seed=2))]
    assert digests[0] == digests[1] != digests[2]


BAD = {
    "import fails": ("raise RuntimeError('no licence')", "no licence"),
    "import exits": ("import sys; sys.exit(3)", "SystemExit"),
    "no function": ("x = 1", "build"),
    "not callable": ("build = 3", "int"),
    "wrong arguments": ("def build(): pass", "function\\(input_shape, num_classes\\)"),
    "raises": ("def build(s, n): raise KeyError('depth')", "KeyError: 'depth'"),
    "exits": ("def build(s, n): raise SystemExit", "SystemExit"),
    "returns a class": ("from torch import nn\ndef build(s, n): return nn.Linear", "returned a type"),
    "returns nothing": ("def build(s, n): return None", "returned a NoneType"),
    "wrong input": ("from torch import nn\ndef build(s, n): return nn.Linear(7, n)", "fails on float32 records \\[2, 4, 5\\]"),
    "wrong output": ("from torch import nn\ndef build(s, n): return nn.Linear(5, n)", "torch.float32 \\[2, 4, 3\\]"),
    "no tensor": (
        "from torch import nn\nclass M(nn.Linear):\n  def forward(self, x): return [1.0]\ndef build(s, n): return M(5, n)",
        "maps 2 records to a list",
    ),
    "not finite": (
        "from torch import nn\ndef build(s, n):\n  m = nn.Linear(5, n)\n  m.bias.data += float('nan')\n  return nn.Sequential(m, nn.Flatten(), nn.LazyLinear(n))",
        "not finite",
    ),
    "float64": (
        "from torch import nn\nclass M(nn.Linear):\n  def forward(self, x): return super().forward(x[:, 0].double()).float()\ndef build(s, n): return M(5, n).double()",
        "weight is torch.float64",
    ),
    "no parameters": (
        "from torch import nn\nclass M(nn.Module):\n  def forward(self, x): return x[:, 0, :3]\ndef build(s, n): return M()",
        "no trainable parameter",
    ),
    "all frozen": (
        "from torch import nn\ndef build(s, n): return nn.Sequential(nn.Flatten(), nn.Linear(20, n)).requires_grad_(False)",
        "no trainable parameter",
    ),
}


@pytest.mark.parametrize(("source", "reason"), BAD.values(), ids=BAD)
def test_every_failure_names_field_entry_point_and_reason(write, source, reason):
    write(source)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with pytest.raises(ConfigError, match=reason) as caught:
        build()
    assert caught.value.field == "model.factory"
    assert f"{MODULE}:build" in str(caught.value)
    assert torch.equal(before, torch.get_rng_state())


def test_missing_module_is_named():
    with pytest.raises(ConfigError, match="no_such_module_anywhere:build"):
        build(module="no_such_module_anywhere")


def test_long_reason_is_cut(write):
    write("def build(s, n): raise ValueError('x' * 100_000)")
    with pytest.raises(ConfigError, match="xxx") as caught:
        build()
    assert len(str(caught.value)) < 600
    assert isinstance(caught.value.__cause__, ValueError)
