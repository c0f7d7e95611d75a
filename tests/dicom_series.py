"""A DICOM series made from a volume, slice by slice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid


def write_series(folder: Path, voxels: np.ndarray, affine: np.ndarray) -> Path:
    """Write ``voxels`` (X, Y, Z) of unsigned 16-bit numbers as MR slices across Z, in random order of names.

    Args:
        folder: to be made.
        voxels: rows of a slice run along X.
        affine: from voxel to RAS mm; orthogonal, any orientation.
    """
    folder.mkdir(parents=True)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    across, down = lps[:3, 0] / spacing[0], lps[:3, 1] / spacing[1]
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    names = np.random.default_rng(0).permutation(voxels.shape[2])
    for number in range(voxels.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{names[number]:04d}.dcm"
        slice_ = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
        slice_.SOPClassUID, slice_.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.FrameOfReferenceUID = study, series, frame
        slice_.Modality, slice_.PatientName, slice_.PatientID = "MR", "Phantom", "1"
        slice_.PatientBirthDate, slice_.PatientSex, slice_.StudyID, slice_.AccessionNumber = "", "", "1", ""
        slice_.StudyDate = slice_.SeriesDate = slice_.ContentDate = "20260101"
        slice_.StudyTime = slice_.SeriesTime = slice_.ContentTime = "120000"
        slice_.ReferringPhysicianName, slice_.Manufacturer, slice_.PositionReferenceIndicator = "", "", ""
        slice_.SeriesNumber, slice_.InstanceNumber = 3, number + 1
        slice_.ImageType = ["ORIGINAL", "PRIMARY"]
        slice_.ImagePositionPatient = [f"{x:.6f}" for x in (lps @ [0, 0, number, 1])[:3]]
        slice_.ImageOrientationPatient = [f"{x:.8f}" for x in (*across, *down)]
        slice_.PixelSpacing = [f"{spacing[1]:.6f}", f"{spacing[0]:.6f}"]
        slice_.SliceThickness = f"{spacing[2]:.6f}"
        slice_.Rows, slice_.Columns = voxels.shape[1], voxels.shape[0]
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation, slice_.PixelRepresentation = 1, "MONOCHROME2", 0
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 16, 16, 15
        slice_.PixelData = np.ascontiguousarray(voxels[:, :, number].T, dtype="<u2").tobytes()
        slice_.save_as(path, enforce_file_format=True)
    return folder


def slices(folder: Path) -> list[Dataset]:
    """The slices of a series in order of their InstanceNumber."""
    from pydicom import dcmread

    return sorted((dcmread(path) for path in folder.iterdir()), key=lambda slice_: int(slice_.InstanceNumber))
