"""Every command of the READMEs and of docs/: its configs are there or shown, its options known, its checks passed."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path

import monai.bundle
import pytest

from plugins import export
from plugins.config.checking import check_config
from plugins.config.command import command_line, refuse_unknown_options
from plugins.data import prepare
from plugins.errors import InputError

ROOT = Path(__file__).parents[1]
READMES = [ROOT / "README.md", *sorted(ROOT.glob("bundles/*/docs/README.md"))]
PAGES = sorted(ROOT.glob("docs/*.md"))
PROGRAM = "/monai/bundle/__main__.py"


def commands(readme: Path) -> list[str]:
    blocks = re.findall(r"^```bash\n(.*?)^```", readme.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if re.search(r"-m (monai\.bundle|plugins)", line)]


def overlays(page: Path) -> dict[str, str]:
    """The files that a page tells to write: a sentence that names one and ends in a colon, then what is in it."""
    shown = r"^[^`\n]*`(\w+\.json)`[^`\n]*:\n\n```json\n(.*?)^```"
    return dict(re.findall(shown, page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL))


def check(line: str) -> None:
    """Refuse a command line as its program would before it does anything."""
    words = shlex.split(line, comments=True)
    program, *arguments = words[words.index("-m", words[0] == "torchrun") + 1 :]
    if program == "plugins.export":
        options = [word for word in arguments if word.startswith("--")]
        assert set(options) <= {f"--{name}" for name in inspect.signature(export.export).parameters}
        assert Path(arguments[0], "configs").is_dir()
        return
    if program == "plugins.data.prepare":
        prepare.parser().parse_args(arguments)
        return
    assert program == "monai.bundle"
    given = command_line([PROGRAM, *arguments])
    if arguments[0] == "run":
        assert given is not None
        refuse_unknown_options([PROGRAM, *arguments])
        check_config(given.config(), given.base())
        return
    known = inspect.signature(getattr(monai.bundle, arguments[0])).parameters
    pairs = dict(zip(arguments[1::2], arguments[2::2], strict=True))
    if given is not None:
        known = {**known, **given.config()}
        assert given.config()[pairs["--net_id"]]
    assert {name.removeprefix("--") for name in pairs} <= set(known)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """The root of a repository in which everything that the READMEs name as an example exists."""
    (tmp_path / "bundles").symlink_to(ROOT / "bundles")
    folders = ("data", "scans", "model", "models", "labels", "true/labels", "translated", "datalist.json", "cases.csv")
    for name in folders:
        (tmp_path / "path/to" / name).mkdir(parents=True)
    (tmp_path / "runs/data").mkdir(parents=True)
    for page in (*READMES, *PAGES):
        for name, text in overlays(page).items():
            (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "line", [pytest.param(line, id=line[:90]) for path in (*READMES, *PAGES) for line in commands(path)]
)
def test_a_command_of_a_readme_is_one_that_works(places, line):
    check(line)


@pytest.mark.parametrize("bundle", [path.parents[1].name for path in READMES[1:]])
def test_a_readme_shows_how_to_train_infer_evaluate_export_and_fetch(bundle):
    text = "\n".join(commands(ROOT / "bundles" / bundle / "docs" / "README.md"))
    shown = (
        "run training",
        "multi_gpu_train.json",
        "run inference",
        "run evaluate",
        "ckpt_export",
        "download",
        "plugins.export",
    )
    assert [each for each in shown if each not in text] == []


@pytest.mark.parametrize(
    "line",
    [
        "python -m monai.bundle run trainig --config_file bundles/tanq_translation/configs/train.json",
        "python -m monai.bundle run --config_file bundles/tanq_translation/configs/train.json --max_epoch 1",
        "python -m monai.bundle run --config_file bundles/tanq_translation/configs/train.json --dataset_dir nowhere",
        "python -m monai.bundle ckpt_export --config_file bundles/tanq_translation/configs/inference.json --net_id x",
        "python -m monai.bundle download --name a --ulr b",
        "python -m plugins.export bundles/tanq path/to/out",
        "python -m plugins.data.prepare crossmoda path/to/unpacked path/to/new --keep_label",
    ],
)
def test_the_command_check_sees(places, line):
    with pytest.raises((InputError, KeyError, AssertionError, SystemExit)):
        check(line)
