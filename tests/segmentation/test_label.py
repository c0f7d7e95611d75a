"""What MONAI Label's ``BundleInferTask`` makes of the bundle: its components without savers, on one scan."""

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.transforms import SaveImaged

from plugins.segmentation import FoldEnsemble, SegmentationModel

from .test_ensemble import FLAT

CONFIGS = Path(__file__).parents[2] / "bundles" / "vs_cochlea_seg" / "configs"


def test_monai_label_gets_the_label_map_and_nothing_is_written(tmp_path, monkeypatch):
    root = tmp_path / "bundle"
    (root / "models").mkdir(parents=True)
    model = SegmentationModel({"2d": FLAT}, (0,), {"VS": ("2d",), "cochlea": ("2d",)})
    model.write(root / "models")
    torch.manual_seed(0)
    torch.save(FoldEnsemble(model).state_dict(), root / "models" / "model.pt")
    voxels = np.random.default_rng(0).integers(0, 900, (14, 12, 6)).astype(np.int16)
    voxels[:3] = 0
    affine = np.array([[0, 0.9, 0, -30], [-0.8, 0, 0, 20], [0, 0, 1.5, 5], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "scan.nii.gz")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(os.sep)

    def parser(**overrides):
        config = ConfigParser()
        config.read_config(str(CONFIGS / "inference.json"))
        config.update({"bundle_root": str(root), "device": "cpu", **overrides})
        return config

    served = parser()
    network = served.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(root / "models" / "model.pt", weights_only=True))
    data = {"image": str(tmp_path / "scan.nii.gz")}
    for transform in served.get_parsed_content("preprocessing").transforms:
        data = transform(data)
    with torch.no_grad():
        data["pred"] = served.get_parsed_content("inferer")(data["image"][None], network)[0]
    for transform in served.get_parsed_content("postprocessing").transforms:
        data = data if isinstance(transform, SaveImaged) else transform(data)
    assert sorted(tmp_path.rglob("*")) == before

    (tmp_path / "list.json").write_text(json.dumps({"training": [{"image": "scan.nii.gz"}]}))
    run = parser(datalist=str(tmp_path / "list.json"), output_dir=str(tmp_path / "out"))
    run.get_parsed_content("run")
    written = nib.load(tmp_path / "out" / "scan_Label.nii.gz")
    found = data["pred"]
    assert len(np.unique(written.dataobj)) > 1
    np.testing.assert_array_equal(found[0].numpy(), np.asarray(written.dataobj))
    np.testing.assert_allclose(found.affine, written.affine)
