"""Scans: readers, checks, the phantom, transforms, slices."""

from plugins.data.checks import check_scan, check_scans
from plugins.data.crossmoda import crossmoda_datalist, heldout_labels, heldout_scans, label_files, scan_datalist
from plugins.data.datalists import (
    dataset_or_phantom,
    inference_datalist,
    read_datalist,
    segmentation_datalist,
    unpaired_datalist,
    write_datalist,
)
from plugins.data.inference import SaveTranslationd, ScanDataset, ScansToDo, VolumeProgress, WeightsLoader
from plugins.data.nifti import Grid
from plugins.data.phantom import write_phantom
from plugins.data.scans import LABEL_VALUES, Scan, check_same_grid, read_grid, read_label, read_probabilities, read_scan
from plugins.data.slices import UnpairedSampler, UnpairedSlices
from plugins.data.transforms import LoadScand, as_tensor, prepared_transforms, translation_transforms
from plugins.data.windows import (
    WINDOW_MM,
    WINDOWS,
    Window,
    check_window_size,
    read_boxes,
    read_windows,
    voxel_box,
    whole_scan,
    window_of_labels,
    write_crop,
    write_windowed_dataset,
)

__all__ = [
    "LABEL_VALUES",
    "WINDOWS",
    "WINDOW_MM",
    "Grid",
    "LoadScand",
    "SaveTranslationd",
    "Scan",
    "ScanDataset",
    "ScansToDo",
    "UnpairedSampler",
    "UnpairedSlices",
    "VolumeProgress",
    "WeightsLoader",
    "Window",
    "as_tensor",
    "check_same_grid",
    "check_scan",
    "check_scans",
    "check_window_size",
    "crossmoda_datalist",
    "dataset_or_phantom",
    "heldout_labels",
    "heldout_scans",
    "inference_datalist",
    "label_files",
    "prepared_transforms",
    "read_boxes",
    "read_datalist",
    "read_grid",
    "read_label",
    "read_probabilities",
    "read_scan",
    "read_windows",
    "scan_datalist",
    "segmentation_datalist",
    "translation_transforms",
    "unpaired_datalist",
    "voxel_box",
    "whole_scan",
    "window_of_labels",
    "write_crop",
    "write_datalist",
    "write_phantom",
    "write_windowed_dataset",
]
