"""The pages of the guides and of the Python package are built without a warning, and name every public part."""

import importlib
import subprocess
import sys
from inspect import isclass, isfunction
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_pages_are_built_without_a_warning_and_hold_every_public_name(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", str(ROOT / "docs"), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for part in sorted(path.stem for path in (ROOT / "docs" / "api").glob("*.md")):
        page = (tmp_path / "api" / f"{part}.html").read_text(encoding="utf-8")
        module = importlib.import_module(f"plugins.{part}")
        classes_and_functions = [
            name for name in module.__all__ if isclass(getattr(module, name)) or isfunction(getattr(module, name))
        ]
        missing = [name for name in classes_and_functions if f'id="plugins.{part}.{name}"' not in page]
        assert missing == [], part


def test_every_package_has_its_page():
    parts = {path.parent.name for path in (ROOT / "plugins").glob("*/__init__.py")}
    pages = {path.stem for path in (ROOT / "docs" / "api").glob("*.md")}
    assert pages == parts - {"config"}
