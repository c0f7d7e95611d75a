"""The picture of the README: ceT1, its translation, and a segmentation over real hrT2, from a run of the driver.

python -m benchmarks.overview path/to/run --output docs/overview.png
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from plugins.data import read_datalist, read_label, read_scan
from plugins.files import whole_file
from plugins.workflow.segment import final_model

WIDTH_MM, HEIGHT_MM = 92, 62
COLOURS = {1: "tab:orange", 2: "tab:cyan"}  # VS, cochlea


def draw(axis: Axes, title: str, image: NDArray[Any], labels: NDArray[Any], affine: NDArray[Any]) -> None:
    """The slice with most of both structures, around them, at its scan's own brightness, with their outlines."""
    level = level_of(labels)
    low, high = np.percentile(image, [0.5, 99.8])
    spacing = voxel_sizes(affine)[:2]
    places = np.argwhere((labels > 0).any(2)) * spacing
    centre = (places.min(0) + places.max(0)) / 2
    extent = (0, image.shape[0] * spacing[0], image.shape[1] * spacing[1], 0)
    axis.imshow(image[:, :, level].T, cmap="gray", vmin=low, vmax=high, extent=extent)
    for value, colour in COLOURS.items():
        mask = labels[:, :, level] == value
        if mask.any():
            grid = [(np.arange(size) + 0.5) * step for size, step in zip(mask.shape, spacing, strict=True)]
            axis.contour(*grid, mask.T, levels=[0.5], colors=colour, linewidths=1.2)
    axis.set_xlim(centre[0] - WIDTH_MM / 2, centre[0] + WIDTH_MM / 2)
    axis.set_ylim(centre[1] + HEIGHT_MM / 2, centre[1] - HEIGHT_MM / 2)
    axis.set_title(title, fontsize=11)
    axis.set_axis_off()


def level_of(labels: NDArray[Any]) -> int:
    """The slice with most of both structures."""
    areas = [np.sqrt((labels == value).sum((0, 1))) for value in COLOURS]
    return int(np.argmax(np.prod(np.array(areas) + 0.1, axis=0)))


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--number", type=int, nargs=2, default=[0, 0], help="of the source and of the validation scan")
    options = parser.parse_args()
    source = read_datalist(options.run / "windows" / "source.json")[options.number[0]]
    target = read_datalist(options.run / "dataset" / "validation.json")[options.number[1]]
    final = final_model(options.run).parents[1].name
    label = read_label(source["label"])
    found = read_label(options.run / final / "validation" / f"{target['case']}_Label.nii.gz")
    figure = Figure(figsize=(9, 2.4), layout="constrained")
    panels = [
        ("ceT1 with its label map", read_scan(source["image"]), label),
        ("translated to hrT2", read_scan(options.run / "tanq_translation" / f"{source['case']}.nii.gz"), label),
        ("hrT2 of another head, segmented", read_scan(target["image"]), found),
    ]
    for axis, (title, scan, outlines) in zip(figure.subplots(1, 3), panels, strict=True):
        draw(axis, title, scan.voxels, outlines.voxels, scan.affine)
    with whole_file(options.output) as part:
        figure.savefig(part, dpi=110)


if __name__ == "__main__":
    main()
