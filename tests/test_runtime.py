from pathlib import Path

import pytest

from plugins import runtime

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
