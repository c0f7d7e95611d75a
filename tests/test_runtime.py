import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest

import plugins
from plugins import runtime
from plugins.errors import InputError

BUNDLE = Path(__file__).parents[1] / "bundles" / "tanq_translation"
RUN = ["/monai/bundle/__main__.py", "run", "--config_file", str(BUNDLE / "configs" / "evaluate.json")]


@pytest.mark.parametrize(
    ("cwd", "options", "told"),
    [
        (None, [], True), (None, ["--bundle_root", "."], False), (None, ["--bundle_root", str(BUNDLE)], False),
        (BUNDLE, [], False),
    ],
)  # fmt: skip
def test_a_run_says_when_the_working_directory_becomes_the_root_of_a_bundle_that_lies_elsewhere(
    tmp_path, monkeypatch, cwd, options, told, caplog
):
    monkeypatch.chdir(cwd or tmp_path)
    monkeypatch.setattr("sys.argv", [*RUN, *options])
    monkeypatch.setattr(runtime, "show_input_errors_as_sentences", lambda *arguments: None)
    runtime.start(seed=None)
    assert (f"add --bundle_root {BUNDLE}" in caplog.text) == told


@pytest.mark.parametrize("version", [plugins.__version__, "9.9.9"])
def test_an_exported_bundle_does_not_run_with_another_version_of_the_code(tmp_path, monkeypatch, version):
    bundle = tmp_path / "bundle"
    shutil.copytree(BUNDLE, bundle)
    (bundle / "plugins").mkdir()
    (bundle / "plugins" / "VENDORED").write_text(f"{version} 0123\n")
    monkeypatch.setattr("sys.argv", [*RUN[:2], "--config_file", str(bundle / "configs" / "evaluate.json")])
    monkeypatch.setattr(runtime, "show_input_errors_as_sentences", lambda *arguments: None)
    refused = pytest.raises(InputError, match=rf"brings version 9.9.9 of its code, but {plugins.__version__} was found")
    with nullcontext() if version == plugins.__version__ else refused:
        runtime.start(seed=None)
