"""Pseudo-labels in a report: what was kept, and what the truth says of it."""

import numpy as np
import pytest

from plugins.files import read_json, write_json
from plugins.report.pseudo import audit_tables, pseudo_table, rounds_of
from plugins.workflow.audit import audit_pseudo_labels

from .conftest import FAILED, FINE, label_map, save


@pytest.fixture
def audited(tmp_path):
    """One round: a scan that is right and trained on, its cochleae ignored, and one without VS that is left out."""
    truth = label_map()
    judged = {FINE: truth, FAILED: np.where(truth == 2, truth, 0)}
    for case, labels in judged.items():
        save(tmp_path / "truth" / f"{case}_Label.nii.gz", truth)
        save(tmp_path / "target" / f"{case}_Label.nii.gz", labels.astype(np.uint8))
    folder = tmp_path / "round_1" / "pseudo_labels"
    save(folder / f"{FINE}_Label.nii.gz", np.where(truth == 2, 3, truth).astype(np.uint8))
    row = {"weight": 1.0, "reasons": [], "ignored_voxels": int((truth == 2).sum())}
    cases = [
        {"case": FINE, "kept": True, "score": 0.9, **row},
        {"case": FAILED, "kept": False, "score": 0.1, **row, "reasons": ["no VS"]},
    ]
    top = {"VS": {"voxels": 40, "kept": 20, "lowest_probability": 0.875}}
    write_json(folder / "gate.json", {"cases": cases, "ensemble_dir": "../../target", "top": top})
    audit_pseudo_labels(folder, tmp_path / "truth", tmp_path / "round_1" / "audit")
    return tmp_path


def test_the_audit_says_what_was_right_of_the_trained_on_and_of_the_left_out(audited):
    (content,) = rounds_of(audited, [FINE, FAILED], ["round_0", "round_1"])
    (table,) = audit_tables({"round 1": content["audit"], "round 2": None})
    used, left = table["rows"]
    assert used == ["round 1", "trained on", "1", "1", "1", "-", "- (p -, 2 scans)"]
    assert left == ["round 1", "left out", "1", "0.5", "-", "1", "- (p -, 2 scans)"]


def test_without_any_audit_there_is_no_table(audited):
    (audited / "round_1" / "audit" / "audit.json").unlink()
    (content,) = rounds_of(audited, [FINE, FAILED], ["round_1"])
    assert content["audit"] is None
    assert audit_tables({"round 1": content["audit"]}) == []


def test_the_audit_of_other_pseudo_labels_is_not_shown(audited):
    gate = audited / "round_1" / "pseudo_labels" / "gate.json"
    content = read_json(gate)
    content["cases"][1]["score"] = 0.2
    write_json(gate, content)
    assert rounds_of(audited, [FINE, FAILED], ["round_1"])[0]["audit"] is None
    gate.unlink()
    assert rounds_of(audited, [FINE, FAILED], ["round_1"])[0]["audit"] is None


def test_an_audit_that_is_no_stage_of_the_run_is_not_shown(audited):
    for stages, shown in (["round_1/audit"], True), (["round_1/pseudo_labels"], False):
        (content,) = rounds_of(audited, [FINE, FAILED], ["round_1"], stages)
        assert (content["audit"] is not None) == shown


def test_the_most_confident_share_stands_in_the_caption(audited):
    (content,) = rounds_of(audited, [FINE, FAILED], ["round_1"])
    assert "20 of 40 voxels are: those of probability 0.875 or more." in pseudo_table(content)["caption"]
    gate = audited / "round_1" / "pseudo_labels" / "gate.json"
    write_json(gate, {"cases": [], "top": {"VS": {"voxels": 0, "kept": 0, "lowest_probability": 0.0}}})
    (content,) = rounds_of(audited, [FINE, FAILED], ["round_1"])
    assert pseudo_table(content)["caption"].endswith("Of the VS, no voxel is left in the scans that are trained on.")
    write_json(gate, {"cases": []})
    (content,) = rounds_of(audited, [FINE, FAILED], ["round_1"])
    assert "probability" not in pseudo_table(content)["caption"]
