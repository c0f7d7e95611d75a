"""The application for MONAI Deploy, without MONAI Deploy: what it makes of the series that it is given."""

import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from monai.bundle import ConfigParser

from plugins.data import read_scan
from plugins.files import read_json

from ..dicom_series import write_series

BUNDLE = Path(__file__).parents[2] / "bundles" / "vs_cochlea_seg"
HRT2 = ("t2_ci3d_tra", "3D_T2_TSE", "AX T2 SPACE", "sag_t2_spc_iso", "3D CISS", "Ax FIESTA-C")
AFFINE = np.diag([0.5, 0.5, 1.5, 1])


class Part:
    """An operator, application or condition that only takes what it is given."""

    def __init__(self, fragment, *conditions, **settings):
        self.settings = settings


@pytest.fixture
def app(monkeypatch):
    names = {
        "monai.deploy": (),
        "monai.deploy.conditions": ("CountCondition",),
        "monai.deploy.core": ("Application", "Fragment", "Operator", "OperatorSpec"),
        "monai.deploy.operators": ("DICOMDataLoaderOperator", "DICOMSeriesSelectorOperator"),
    }
    for name, parts in names.items():
        module = ModuleType(name)
        vars(module).update({part: type(part, (Part,), {}) for part in parts})
        monkeypatch.setitem(sys.modules, name, module)
    return runpy.run_path(str(BUNDLE / "docs" / "deploy_app.py"))


def study_of(*folders):
    """A study with a selected series for each folder, as the selector gives it."""
    selected = []
    for folder in folders:
        natives = [SimpleNamespace(filename=str(file)) for file in sorted(folder.iterdir())]
        instances = [SimpleNamespace(get_native_sop_instance=lambda native=native: native) for native in natives]
        series = SimpleNamespace(SeriesInstanceUID=folder.name, get_sop_instances=lambda found=instances: found)
        selected.append(SimpleNamespace(series=series))
    return SimpleNamespace(selected_series=selected)


def receives(*studies):
    return SimpleNamespace(receive=lambda name: [*studies] if name == "studies" else None)


def test_every_series_is_segmented_by_the_bundle(app, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    volumes = {name: rng.integers(0, 999, (7, 6, 4 + number)) for number, name in enumerate(["1.2.3", "1.2.4"])}
    folders = [write_series(tmp_path / "in" / name, voxels, AFFINE) for name, voxels in volumes.items()]
    calls = []

    def run(command, cwd):
        options = dict(zip(command[5::2], command[6::2], strict=True))
        scans = read_json(options.pop("--datalist"))["training"]
        calls.append((command[1:5], options, cwd))
        assert [scan["case"] for scan in scans] == [*volumes]
        for scan in scans:
            voxels = volumes[scan["case"]]
            found = read_scan(scan["image"])
            assert found.voxels.shape == voxels.shape
            np.testing.assert_array_equal(np.sort(found.voxels.ravel()), np.sort(voxels.ravel()))
        return SimpleNamespace(returncode=len(calls) - 1)

    monkeypatch.setattr(subprocess, "run", run)
    segment = app["SegmentSeries"](None, BUNDLE, tmp_path / "out", name="segment")
    assert segment.settings == {"name": "segment"}
    segment.compute(receives(study_of(folders[0]), study_of(folders[1])), None, None)
    ((start, options, cwd),) = calls
    assert start == ["-m", "monai.bundle", "run", "inference"]
    assert (cwd / options["--config_file"]).is_file()
    assert options["--output_dir"] == str(tmp_path / "out")
    with pytest.raises(SystemExit, match=r"error: not every series was segmented\. What was is in .*out"):
        segment.compute(receives(study_of(*folders)), None, None)
    config = ConfigParser.load_config_file(cwd / options["--config_file"])
    assert {"inference", "datalist", "output_dir", "bundle_root"} <= config.keys()


def test_no_series_at_all_is_an_error(app, tmp_path):
    segment = app["SegmentSeries"](None, BUNDLE, tmp_path / "out")
    with pytest.raises(SystemExit, match=r"no series is an hrT2\. Correct SEQUENCES"):
        segment.compute(receives(study_of()), None, None)


@pytest.mark.parametrize("description", [*HRT2, "t1_space_gd", "T1 post2", "ax t2 flair", ""])
def test_the_sequences_of_an_hrt2_are_known_by_their_names(app, description):
    assert bool(re.search(app["SEQUENCES"], description, re.IGNORECASE)) == (description in HRT2)
