"""Scans and label maps as MONAI's transforms take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImaged

from plugins.data.nifti import Grid
from plugins.data.scans import LABEL_VALUES, Scan, read_label, read_scan


def as_tensor(scan: Scan) -> MetaTensor:
    """The voxels, float32 :math:`(X, Y, Z)`, with the affine and what MONAI's transforms ask of the meta data."""
    affine = torch.from_numpy(np.array(scan.affine))
    meta = {
        "filename_or_obj": str(scan.path),
        "spatial_shape": np.array(scan.shape),
        "original_affine": np.array(scan.affine),
        "original_channel_dim": "no_channel",
        "space": "RAS",
    }
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(scan.voxels, np.float32)), affine=affine, meta=meta)


class LoadScand(LoadImaged):
    """Read scans by :func:`plugins.data.read_scan`, and what lies under ``label`` by :func:`plugins.data.read_label`.

    MONAI's own readers take the qform where pixdim and sform differ, and know no units. A label map must lie on the
    scan that is read before it, and gets its affine.

    Args:
        keys: of files or folders of DICOM series, scans first; they become float32 tensors :math:`(X, Y, Z)`.
        allow_missing_keys: leave out keys that an item does not have.
        label_values: that a label map may hold.

    Raises:
        InputError: while transforming, as the two functions.
    """

    def __init__(
        self, keys: str | Sequence[str], allow_missing_keys: bool = False, label_values: Sequence[int] = LABEL_VALUES
    ):
        super().__init__(keys, allow_missing_keys=allow_missing_keys)
        self._label_values = label_values

    def __call__(self, data: Mapping[Any, Any], reader: Any = None) -> dict[Any, Any]:
        """Return ``data`` with the files read; ``reader`` is not used."""
        item, grid = dict(data), None
        for key in self.key_iterator(item):
            scan: Scan = read_label(item[key], self._label_values, grid) if key == "label" else read_scan(item[key])
            grid = grid or Grid(scan.path, scan.shape, scan.affine, scan.header)
            item[key] = as_tensor(scan)
        return item
