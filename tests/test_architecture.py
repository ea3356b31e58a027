"""The import table of docs/architecture.md, read from the code with ``ast``: any edge that is not in it fails here."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

LAYERS = {
    0: {"environment", "errors", "codec", "files", "jsonfields", "merkle", "signing", "vectors"},
    1: {"identity", "secagg", "privacy", "robust", "admission", "translog"},
    2: {"plan", "policy", "clientstore", "data", "models", "results", "checkpoint", "runfolder", "defence"},
    3: {"sim", "flower", "edge", "report"},
    4: {"cli", "__main__"},
}
LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names}

TORCH_ALLOWED = (
    "fedsec.privacy.dpsgd",
    "fedsec.privacy.bookkeeping",
    "fedsec.privacy.clipping",
    "fedsec.privacy.modelcheck",
    "fedsec.privacy.auditing",
    "fedsec.models",
    "fedsec.data",
    "client",
)
FLWR_PUBLIC = ("flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.simulation")
FLWR_INTERNALS_ALLOWED = ("fedsec.flower.compat",)
GRPC_ALLOWED = ("fedsec.edge", "fedsec.identity.tls")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> list[Path]:
    return sorted(path for top in ("fedsec", "server", "client") for path in (ROOT / top).rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    """Every module that the file imports anywhere, type-checking blocks included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def within(module: str, prefixes: tuple[str, ...]) -> bool:
    return any(module == prefix or module.startswith(prefix + ".") for prefix in prefixes)


def breaks_the_layers(own: str | None, name: str) -> bool:
    root, *tail = name.split(".")
    if root != "fedsec" or not tail or own is None or own not in LAYER_OF or tail[0] not in LAYER_OF:
        return False
    mine, other = LAYER_OF[own], LAYER_OF[tail[0]]
    return other > mine or (other == mine and mine in (1, 3) and tail[0] != own)


def breaks_the_roots(top: str, own: str | None, name: str) -> bool:
    root = name.partition(".")[0]
    return root == "experiments" or (root in ("server", "client") and root != top and own not in ("cli", "__main__"))


def breaks_the_third_parties(module: str, own: str | None, name: str) -> bool:
    root = name.partition(".")[0]
    if root == "opacus" and within(module, ("fedsec.privacy.accounting",)):
        return False
    if root in ("torch", "opacus"):
        return not within(module, TORCH_ALLOWED)
    if root == "grpc":
        return not within(module, GRPC_ALLOWED)
    if root == "flwr":
        public = name == "flwr" or within(name, FLWR_PUBLIC)
        return own not in (None, "flower") or not (public or within(module, FLWR_INTERNALS_ALLOWED))
    return False


def faults_of(module: str, imported: set[str]) -> list[str]:
    """The imports that break the table."""
    top, *rest = module.split(".")
    own = rest[0] if top == "fedsec" and rest else None
    return [
        f"{module} imports {name}"
        for name in sorted(imported)
        if breaks_the_layers(own, name) or breaks_the_roots(top, own, name) or breaks_the_third_parties(module, own, name)
    ]


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_module_imports_only_what_its_layer_may(path: Path) -> None:
    assert faults_of(module_name(path), imports_of(path)) == []


def test_every_module_of_fedsec_stands_in_the_table() -> None:
    tops = {path.relative_to(ROOT / "fedsec").parts[0].removesuffix(".py") for path in (ROOT / "fedsec").rglob("*.py")} - {"__init__"}
    assert tops <= set(LAYER_OF)


def test_the_table_in_the_docs_is_this_one() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and line[2].isdigit()]
    documented = {int(row[2]): set(_words_in_backticks(row.split("|")[2])) for row in rows}
    assert {layer: names for layer, names in LAYERS.items() if layer < 4} == {k: v for k, v in documented.items() if k < 4}


def _words_in_backticks(text: str) -> list[str]:
    return text.split("`")[1::2]


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("fedsec.codec", "fedsec.plan"),
        ("fedsec.secagg.client", "fedsec.privacy.ledger"),
        ("fedsec.flower.loop", "fedsec.report.plots"),
        ("fedsec.plan.load", "torch"),
        ("fedsec.robust.rules", "flwr.app"),
        ("fedsec.flower.loop", "flwr.supercore.task_identity"),
        ("server.app", "client.train"),
        ("fedsec.flower.stages", "grpc"),
    ],
)
def test_the_check_itself_catches_a_forbidden_edge(module: str, imported: str) -> None:
    assert faults_of(module, {imported}) == [f"{module} imports {imported}"]
