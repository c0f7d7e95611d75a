"""Small oblique scans with a run's files, and their report."""

import platform

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import from_matvec

from plugins.evaluation import evaluate_folder
from plugins.files import write_json
from plugins.report import write_report

TURN = np.linalg.svd([[0, -0.5, 0.05], [-0.5, 0, 0.05], [0.05, 0.05, 0.5]])
AFFINE = from_matvec(TURN[0] @ TURN[2] @ np.diag([0.5, 0.5, 1.5]), [3, 4, 5])
HOSTILE = "<b onmouseover=alert(1)>&\"'"
FAILED, FINE = "crossmoda2021_ldn_1", "crossmoda2021_ldn_2"


def save(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def label_map(wide=5):
    label = np.zeros((150, 40, 12), dtype=np.uint8)
    label[30 : 30 + 2 * wide, 10 : 10 + 2 * wide, 4:7] = 1
    label[15:20, 12:18, 5:7] = 2
    label[110:115, 12:18, 5:7] = 2
    return label


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A run of two rounds: one scan whose VS is missed, one that is right, and one with a name like a tag."""
    root = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    plain = np.diag([0.5, 0.5, 1.5, 1])
    truth = label_map()
    scan = (rng.random(truth.shape) * 60 + 200 * (truth == 2) + 90 * (truth == 1)).astype(np.float32)
    cases = [FAILED, FINE, HOSTILE]
    for case in cases:
        save(root / "scans" / f"{case}_hrT2.nii.gz", scan, plain)
        save(root / "truth" / f"{case}_Label.nii.gz", truth, plain)
        for number in ("round_0", "round_1"):
            found = np.where(truth == 2, truth, 0) if case == FAILED else truth
            save(root / number / "validation" / f"{case}_Label.nii.gz", found.astype(np.uint8), plain)
    save(root / "tanq_translation" / "s.nii.gz", scan, plain)
    metrics = {}
    for number in ("round_0", "round_1"):
        metrics[number] = root / number / "evaluation" / "metrics.json"
        evaluate_folder(root / number / "validation", root / "truth", metrics[number])
        record = {"fingerprint": "0" * 64, "command": ["python", HOSTILE], "seconds": 12.5, "results": {}}
        later = {"peak_mib": 431.5, "versions": {"torch": "1.13<b>", "Python": platform.python_version()}}
        record |= later if number == "round_1" else {}  # earlier versions wrote none
        write_json(root / number / "validation" / "stage.json", record)
        write_json(root / number / "validation" / "overrides.json", {"seed": 0, "note": HOSTILE})
    write_report(
        validation=[{"case": case, "image": root / "scans" / f"{case}_hrT2.nii.gz"} for case in cases],
        pred_dirs={number: root / number / "validation" for number in metrics},
        metrics_files=metrics,
        output_dir=root / "report",
        truth={case: root / "truth" / f"{case}_Label.nii.gz" for case in cases},
        source=[
            {
                "case": "s",
                "image": root / "tanq_translation" / "s.nii.gz",
                "label": root / "truth" / f"{FINE}_Label.nii.gz",
            }
        ],
        translations={"tanq": root / "tanq_translation"},
        decisions={"round_1": "accepted <b>, nothing falls"},
        run_dir=root,
    )
    return root
