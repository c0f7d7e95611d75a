from pathlib import Path

import pytest

from plugins import runtime
from plugins.errors import InputError

BUNDLE = Path(__file__).parents[1] / "bundles" / "tanq_translation"
RUN = ["/monai/bundle/__main__.py", "run", "--config_file", str(BUNDLE / "configs" / "evaluate.json")]


@pytest.mark.parametrize(
    ("cwd", "options", "refused"),
    [
        (None, [], True), (None, ["--bundle_root", "."], False), (None, ["--bundle_root", str(BUNDLE)], False),
        (BUNDLE, [], False),
    ],
)  # fmt: skip
def test_the_working_directory_becomes_a_bundles_root_only_if_that_is_meant(
    tmp_path, monkeypatch, cwd, options, refused
):
    monkeypatch.chdir(cwd or tmp_path)
    monkeypatch.setattr("sys.argv", [*RUN, *options])
    monkeypatch.setattr(runtime, "show_input_errors_as_sentences", lambda: None)
    if refused:
        with pytest.raises(InputError, match=f"add --bundle_root {BUNDLE}"):
            runtime.start(seed=None)
    else:
        runtime.start(seed=None)
