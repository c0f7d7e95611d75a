"""What the viewer gets: the right place, the right labels, and few bytes."""

import base64
import gzip

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine

from plugins.data import Window
from plugins.report.volumes import CASE_BYTES, DIFFERENCE, PREDICTION, REFERENCE, pack_case

from .conftest import AFFINE, label_map, save


def unpacked(text):
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))


def written(tmp_path):
    truth = label_map()
    found = np.where(truth == 1, 0, truth).astype(np.uint8)
    found[60:64, 30:34, 5] = 1
    scan = np.random.default_rng(0).random(truth.shape, dtype=np.float32)
    scan[truth > 0] = 5
    files = {PREDICTION: save(tmp_path / "p.nii.gz", found), REFERENCE: save(tmp_path / "r.nii.gz", truth)}
    return save(tmp_path / "scan.nii.gz", scan), files, found, truth


def test_what_is_packed_lies_where_it_lay(tmp_path):
    scan, files, found, truth = written(tmp_path)
    packed = pack_case(scan, files)
    image, maps = unpacked(packed["image"]), {name: unpacked(text) for name, text in packed["maps"].items()}
    assert image.get_data_dtype() == np.uint8
    assert packed["step"] == 1
    for name, volume in ((PREDICTION, found), (REFERENCE, truth)):
        for value in (1, 2):
            here = apply_affine(maps[name].affine, np.argwhere(np.asarray(maps[name].dataobj) == value))
            np.testing.assert_allclose(here, apply_affine(AFFINE, np.argwhere(volume == value)), atol=1e-4)
    bright = apply_affine(image.affine, np.argwhere(np.asarray(image.dataobj) == 255))
    np.testing.assert_allclose(bright, apply_affine(AFFINE, np.argwhere(truth > 0)), atol=1e-4)
    values = np.asarray(maps[DIFFERENCE].dataobj)
    assert [int((values == value).sum()) for value in (1, 2, 3, 4)] == [0, 120, 16, 300]
    assert any(np.allclose(packed["centre"], apply_affine(AFFINE, at), atol=0.01) for at in np.argwhere(truth == 1))


def test_a_window_is_all_that_is_shown(tmp_path):
    scan, files, _, _ = written(tmp_path)
    window = Window(tuple(apply_affine(AFFINE, (40, 20, 6))), (10.0, 10.0, 6.0), "locator", 1.0)
    shape = unpacked(pack_case(scan, files, window)["image"]).shape
    assert max(shape[:2]) <= 21
    assert shape[2] <= 5


def test_the_limit_is_kept_by_fewer_levels_then_fewer_voxels(tmp_path):
    scan = save(tmp_path / "scan.nii.gz", np.random.default_rng(0).random((150, 40, 12), dtype=np.float32))
    full = pack_case(scan, {})
    coarse = pack_case(scan, {}, limit=len(full["image"]) - 1)
    small = pack_case(scan, {}, limit=20_000)
    assert (full["levels"], full["step"]) == (128, 1)
    assert (coarse["levels"], coarse["step"]) == (64, 1)
    assert small["step"] > 1
    assert len(small["image"]) <= 20_000
    assert 20 * CASE_BYTES + 10_000_000 < 30_000_000
    points = apply_affine(unpacked(small["image"]).affine, [[0, 0, 0], [1, 1, 1]])
    step = small["step"]
    np.testing.assert_allclose(points, apply_affine(AFFINE, [[0, 0, 0], [step, step, 1]]), atol=1e-4)
