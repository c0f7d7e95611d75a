"""What docs/design.md says of the adapter: every module has its row, and nnU-Net has what the rows name."""

import re
from pathlib import Path

import batchgenerators
import batchgeneratorsv2
import nnunetv2

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "docs" / "design.md").read_text(encoding="utf-8").partition("## What of nnU-Net's side")[2]
ROWS = [line.split("|")[1:4] for line in SECTION.partition("\n## ")[0].splitlines() if re.match(r"\| `", line)]
FOLDERS = [Path(package.__path__[0]) for package in (nnunetv2, batchgenerators, batchgeneratorsv2)]
OF_OTHERS = {"multiprocessing", "concurrent.futures", "torch.save", "numpy.partition", "Engine", "model_dir", "None"}


def test_every_module_has_its_row():
    rows = {match for row in ROWS for match in re.findall(r"`(\w+)\.py`", row[0])}
    modules = {path.stem for path in (ROOT / "plugins" / "nnunet").glob("*.py")} - {"__init__"}
    assert modules <= rows


def test_what_the_rows_name_of_nnunet_is_there():
    files = [path for folder in FOLDERS for path in folder.rglob("*.py")]
    known = {path.name for path in files}
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    adapter = ROWS[: [row[0].strip().startswith("`patches.py`") for row in ROWS].index(True)]
    named = {name for row in adapter for cell in row[1:] for name in re.findall(r"`([^`]+)`", cell)} - OF_OTHERS
    words = {word for name in named for word in re.findall(r"[A-Za-z_]\w+", name.removesuffix(".py"))}
    assert len(words) > 40
    missing = sorted(word for word in words if f"{word}.py" not in known and not re.search(rf"\b{word}\b", text))
    assert missing == []
