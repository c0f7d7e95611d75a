from __future__ import annotations

import json
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import jsonschema
import pytest

import plugins

from .test_architecture import PACKAGE, names_in

ROOT = Path(__file__).parents[1]
SCHEMA = ROOT / "tests" / "schemas" / "meta_schema_20240725.json"
BUNDLES = sorted(path.name for path in (ROOT / "bundles").iterdir() if path.is_dir())
HEADINGS = [
    "### Authors", "### Tags", "## Model Description", "## Data", "#### Preprocessing", "## Performance",
    "## Additional Usage Steps", "## System Configuration", "## Limitations", "## Citation Info", "## References",
]  # fmt: skip


def metadata(bundle: str) -> dict:
    return json.loads((ROOT / "bundles" / bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))


def pins() -> dict[str, str]:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w.-]+)==(\S+)$", text, flags=re.MULTILINE))


def test_there_are_four_bundles():
    assert BUNDLES == ["cyclegan_translation", "tanq_translation", "vs_cochlea_seg", "vs_cochlea_uda"]


@pytest.mark.parametrize("bundle", BUNDLES)
def test_metadata_follows_the_schema_that_it_names(bundle):
    content = metadata(bundle)
    jsonschema.validate(content, json.loads(SCHEMA.read_text(encoding="utf-8")))
    assert content["schema"].endswith("/" + SCHEMA.name)


@pytest.mark.parametrize("bundle", BUNDLES)
def test_the_version_is_that_of_the_code_and_has_a_changelog(bundle):
    content = metadata(bundle)
    assert content["version"] == plugins.__version__
    assert content["changelog"][content["version"]]


@pytest.mark.parametrize("bundle", BUNDLES)
def test_the_versions_named_are_the_versions_tested(bundle):
    content = metadata(bundle)
    named = {
        "monai": content["monai_version"],
        "torch": content["pytorch_version"],
        "numpy": content["numpy_version"],
        **content["required_packages_version"],
    }
    assert named == {package: pins().get(package) for package in named}


def packages_of(names: set[str]) -> set[str]:
    """The packages of others that are imported with these names of ours."""
    found: set[str] = set()
    seen: set[str] = set()
    while names - seen:
        name = (names - seen).pop()
        seen.add(name)
        first, *rest = name.split(".")
        if first != "plugins":
            found |= {first} - sys.stdlib_module_names
            continue
        names = names | {".".join([first, *rest[:depth]]) for depth in range(len(rest))}
        path = PACKAGE.joinpath(*rest)
        for file in (path / "__init__.py", path.with_suffix(".py")):
            names = names | (names_in(file) if file.is_file() else set())
    return found


@pytest.mark.parametrize("bundle", BUNDLES)
def test_the_packages_named_are_those_that_its_configs_import(bundle):
    folders = [ROOT / "bundles" / name for name in (BUNDLES if bundle == "vs_cochlea_uda" else [bundle])]
    text = "".join(path.read_text(encoding="utf-8") for folder in folders for path in folder.glob("configs/*.json"))
    imported = packages_of(set(re.findall(r"plugins(?:\.\w+)+", text)) | {"fire"}) - {"mlflow"}  # for --tracking only
    distributions = packages_distributions()
    needed = {distributions[name][0].replace("_", "-").lower() for name in imported} | {
        "tensorboard",
        "pyyaml",
    }  # MONAI imports them late
    elsewhere = {"monai", "torch", "numpy", "batchgenerators", "batchgeneratorsv2"}  # named above, brought by nnunetv2
    assert set(metadata(bundle)["required_packages_version"]) == needed - elsewhere


@pytest.mark.parametrize("bundle", BUNDLES)
def test_tools_find_the_image_first_and_the_prediction(bundle):
    """``verify_net_in_out`` and MONAI Label ask for these two by name."""
    network = metadata(bundle)["network_data_format"]
    assert next(iter(network["inputs"])) == "image"
    assert next(iter(network["outputs"])) == "pred"


@pytest.mark.parametrize("bundle", BUNDLES)
def test_channels_are_all_described(bundle):
    network = metadata(bundle)["network_data_format"]
    for tensor in [*network["inputs"].values(), *network["outputs"].values()]:
        assert list(tensor["channel_def"]) == [str(channel) for channel in range(tensor["num_channels"])]


@pytest.mark.parametrize("bundle", BUNDLES)
def test_the_readme_has_the_zoos_headings_in_order(bundle):
    text = (ROOT / "bundles" / bundle / "docs" / "README.md").read_text(encoding="utf-8")
    found = [line for line in text.splitlines() if line in HEADINGS]
    assert found == HEADINGS


@pytest.mark.parametrize("bundle", BUNDLES)
def test_licences_of_code_and_data_lie_in_the_bundle(bundle):
    folder = ROOT / "bundles" / bundle
    assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert "CC BY-NC-SA 4.0" in (folder / "docs" / "data_license.txt").read_text(encoding="utf-8")


def test_the_changelog_and_the_citation_know_the_version():
    assert f"## {plugins.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    assert f"version: {plugins.__version__}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
