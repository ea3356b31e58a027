"""The vector files are what their generator makes, and the generator knows nothing of fedsec."""

import runpy
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "vectors"


def test_the_files_are_what_the_generator_makes() -> None:
    contents = runpy.run_path(str(FOLDER / "generate_secagg.py"))["contents"]()
    assert {path.name for path in FOLDER.glob("secagg_*.json")} == set(contents)
    for name, text in contents.items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text, name


def test_the_generator_is_independent_of_what_it_checks() -> None:
    source = (FOLDER / "generate_secagg.py").read_text(encoding="utf-8")
    assert "import fedsec" not in source
    assert "from fedsec" not in source
