"""What is left of VS and cochlea at half and quarter resolution, by each way of shrinking label maps.

python -m benchmarks.regions path/to/labels [--crop 256] [--output regions.json]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from plugins.data import translation_transforms
from plugins.evaluation.metrics import STRUCTURES
from plugins.files import write_json
from plugins.networks import list_regions, one_hot_regions

SIZES = {"half": 2, "quarter": 4}
REDUCTIONS = ("nearest", "any")


def slices_of(path: Path, crop: int, spacing: list[float] | None) -> torch.Tensor:
    """Axial label slices as translators see them: :math:`(Z, 1, H, W)`."""
    transform = translation_transforms(spacing=spacing, crop_size=(crop, crop), patch_size=(crop, crop))
    volume = transform({"image": str(path), "label": str(path)})["label"]
    return torch.as_tensor(volume).permute(3, 0, 1, 2).float()


def measure(slices: torch.Tensor) -> dict[str, Any]:
    """For each structure, size and reduction: slices that keep it, its area, and how much of that area is it."""
    targets = one_hot_regions(slices)[:, 1:]
    size = list(slices.shape[2:])
    results: dict[str, Any] = {}
    for (name, _), number in zip(STRUCTURES.items(), range(2), strict=True):
        own = targets[:, number : number + 1]
        shown = own.flatten(1).any(1)
        pixels = own.flatten(1).sum(1)[shown].float()
        results[name] = {"slices": int(shown.sum()), "median_pixels": float(pixels.median()) if len(pixels) else None}
        if not shown.any():
            continue
        for title, factor in SIZES.items():
            small = [axis // factor for axis in size]
            share = F.avg_pool2d(own.float(), factor).flatten(1)
            for reduction in REDUCTIONS:
                regions = list_regions(targets, small, reduction)
                mine = regions.group % 2 == number
                places = (regions.sample[mine], regions.position[mine])
                counts = regions.target_count.reshape(-1, 2)[:, number][shown]
                results[name][f"{title}, {reduction}"] = {
                    "slices_kept": float((counts > 0).float().mean()),
                    "one_pixel_slices": float((counts == 1).float().mean()),
                    "area_ratio": float(counts.sum() * factor**2 / pixels.sum()),
                    "purity": float(share[places].mean()) if mine.any() else None,
                }
    return results


def main() -> None:
    """Measure all label maps of a folder together."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("labels", type=Path, help="a label map, or a folder of *_Label.nii.gz")
    arguments.add_argument("--crop", type=int, default=256)
    arguments.add_argument("--spacing", type=float, nargs=3, default=None, help="mm; left out, the scans' own")
    arguments.add_argument("--output", type=Path, default=None)
    given = arguments.parse_args()
    files = [given.labels] if given.labels.is_file() else sorted(given.labels.glob("*_Label.nii.gz"))
    results = measure(torch.cat([slices_of(path, given.crop, given.spacing) for path in files]))
    table = Table("structure", "size, reduction", "slices kept", "one pixel", "area ratio", "purity")
    for name, values in results.items():
        for title, row in values.items():
            if isinstance(row, dict):
                table.add_row(name, title, *("-" if value is None else f"{value:.2f}" for value in row.values()))
    Console().print(
        {name: {k: v for k, v in each.items() if not isinstance(v, dict)} for name, each in results.items()}
    )
    Console().print(table)
    if given.output is not None:
        write_json(given.output, results)


if __name__ == "__main__":
    main()
