"""A hundred pairs of masks from integers alone, so that every machine and every NumPy draws the same ones.

``reference_distances.json`` holds what MedPy 0.4.0, MedPy 0.5.2 and surface-distance-based-measures 0.1 give for
them. The two releases of MedPy cannot be installed side by side, and the older one not beside NumPy 2. So
``python mask_pairs.py name=file ...`` was run in an environment of each, and the file put together from the outputs.
"""

import importlib.metadata
import json
import sys

import numpy as np

SPACINGS = (0.25, 0.41, 0.5, 0.8, 1.0, 1.5, 2.0, 3.0)


def mask_pairs(count=100, seed=2022):
    """Yield prediction, reference and mm per voxel; sizes all differ, some masks touch the border."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        shape = rng.permutation([*rng.choice(np.arange(5, 25), 3, replace=False)])
        spacing = tuple(float(rng.choice(SPACINGS)) for _ in range(3))
        masks = []
        for _ in range(2):
            mask = rng.integers(0, 60, shape) == 0
            for _ in range(rng.integers(1, 4)):
                place = [rng.integers(0, size) for size in shape]
                grid = np.ogrid[tuple(slice(size) for size in shape)]
                radius = rng.integers(2, 8)
                mask |= sum((axis - at) ** 2 for axis, at in zip(grid, place, strict=True)) <= radius**2
            masks.append(mask)
        yield (*masks, spacing)


def with_medpy(pred, truth, spacing):
    """What MedPy gives; it stands in ``medpy`` of whichever environment this runs in."""
    from medpy.metric import binary

    return {
        "dice": binary.dc(pred, truth),
        "assd": binary.assd(pred, truth, spacing),
        "hd95": binary.hd95(pred, truth, spacing),
    }


def with_surface_distance(pred, truth, spacing):
    """What DeepMind's surface-distance gives."""
    import surface_distance

    found = surface_distance.compute_surface_distances(truth, pred, spacing)
    return {"nsd": surface_distance.compute_surface_dice_at_tolerance(found, 1.0)}


if __name__ == "__main__":
    for package, file in (argument.split("=") for argument in sys.argv[1:]):
        function = with_medpy if package == "MedPy" else with_surface_distance
        rows = [{k: float(v) for k, v in function(*pair).items()} for pair in mask_pairs()]
        with open(file, "w", encoding="utf-8") as out:
            json.dump({"version": importlib.metadata.version(package), "rows": rows}, out)
