# ruff: noqa: B905
"""Segment a NIfTI scan by the programs of an exported bundle, without its code: locate, crop, segment, paste back.

python segment.py path/to/vs_cochlea_seg/models scan_hrT2.nii.gz label.nii.gz

The model needs a locator. What ``anatomy`` of ``model.json`` asks for is left out, and so is a window beside one ear.
"""

import json
import sys
from itertools import chain, combinations, product
from math import ceil
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from nibabel.affines import apply_affine, voxel_sizes
from scipy.ndimage import binary_fill_holes, center_of_mass, gaussian_filter, label, uniform_filter, zoom
from torch.nn.functional import interpolate, pad


def places(heat, mm):
    """The hottest places of a map, and the share of its heat within 10 mm."""
    cube = np.array([2 * int(10 / length) + 1 for length in mm])
    share = uniform_filter(heat, cube, mode="constant") * np.prod(cube)
    for _ in range(6):
        peak = np.array(np.unravel_index(share.argmax(), share.shape))
        near, far = (tuple(map(slice, np.maximum(0, peak - r), peak + r + 1)) for r in (cube // 2, cube))
        yield np.add(center_of_mass(heat[near]), [edge.start for edge in near]), share[tuple(peak)]
        share[far] = 0


def window(volume, affine, network, settings):
    """The box around both inner ears of a scan with axes R, A, S; all of it where they are not found."""
    mm, (low, part) = voxel_sizes(affine), cropped(volume)
    part = np.ascontiguousarray(part[::-1, ::-1])  # L, P, S
    least, most = np.percentile(part[part != 0], settings["percentiles"])
    grey = (torch.from_numpy(part).sub(least) / max(most - least, 1e-8)).clamp(0, 1)[None, None]
    size = [max(1, round(count * length / settings["spacing"])) for count, length in zip(part.shape, mm)]
    small, ratio = interpolate(grey, size, mode="area"), np.divide(part.shape, size)
    gaps = [max(-n % d, 2 * d - n) for n, d in zip(size, np.prod(settings["network"]["strides"], 0).tolist())]

    def maps(views):
        return network(pad(views, [0, gaps[2], 0, gaps[1], 0, gaps[0]]))[..., : size[0], : size[1], : size[2]]

    views = torch.cat([small**gamma for gamma in (1, 0.6, 0.35)])
    heat = torch.cat([maps(views), maps(views.flip(2)).flip(1, 2)]).double().flatten(2).softmax(2).mean(0)
    right, left = (list(places(each.reshape(size).numpy(), ratio * mm)) for each in heat)
    pairs = [(np.sqrt(p * q), (a + b) / 2, (b - a) * ratio * mm) for (a, p), (b, q) in product(right, left)]
    pairs = [each[:2] for each in pairs if each[2][0] > 0 and 45 <= np.linalg.norm(each[2]) <= 95 and
             (np.abs(each[2][1:]) <= (25, 20)).all()]  # fmt: skip
    score, centre = max(pairs, key=lambda pair: pair[0], default=(-1, None))
    if score < settings["threshold"]:
        return (slice(None),) * 3
    centre = (centre + 0.5) * ratio - 0.5
    centre[:2] = np.array(part.shape[:2]) - 1 - centre[:2]
    centre = apply_affine(np.linalg.inv(affine), apply_affine(affine, centre + low).round(2))
    half = np.divide(settings["window_size"], mm) / 2
    first = np.ceil((centre - half).round(6)).astype(int).clip(0, np.array(volume.shape) - 1)
    last = np.floor((centre + half).round(6)).astype(int) + 1
    return tuple(map(slice, first, last.clip(first + 1, volume.shape)))


def cropped(volume):
    """What is not zero, and where it begins."""
    place = np.argwhere(volume)
    return place.min(0), volume[tuple(map(slice, place.min(0), place.max(0) + 1))]


def resampled(volume, shape, axis, to):
    """A volume with another shape; along ``axis``, if there is one, the nearest slices."""
    if axis is None or volume.shape == tuple(shape):
        return volume if volume.shape == tuple(shape) else to(volume, shape)
    old, new = volume.shape[axis], shape[axis]
    nearest = np.floor((old / new) * (np.arange(new) + 0.5) - 0.5 + 0.5).astype(int).clip(0, old - 1)
    slices = np.stack([to(each, np.delete(shape, axis).tolist()) for each in np.moveaxis(volume, axis, 0)], axis)
    return slices.take(nearest, axis)


def cubic(array, shape):
    """nnU-Net's cubic splines of an image."""
    factors = [1 / (old / new) for old, new in zip(array.shape, shape)]
    return zoom(array.astype(float), factors, order=3, mode="nearest", grid_mode=True).clip(array.min(), array.max())


def linear(array, shape):
    """Linear interpolation of logits."""
    mode = "bilinear" if array.ndim == 2 else "trilinear"
    return interpolate(torch.from_numpy(array)[None, None], tuple(shape), mode=mode)[0, 0].numpy()


def logits_of(network, volume, patch, mirror_axes):
    """Weighted mean over evenly spaced, mirrored tiles; a network of two axes sees slices along the first one."""
    tile = [1, *patch][-3:]
    gaps = [max(0, want - have) for want, have in zip(tile, volume.shape)]
    inside = tuple(slice(gap // 2, gap // 2 + have) for gap, have in zip(gaps, volume.shape))
    volume = torch.from_numpy(np.pad(volume, [(gap // 2, gap - gap // 2) for gap in gaps]))
    steps = [ceil((have - each) / (each * 0.5)) if each > 1 else have - 1 for have, each in zip(volume.shape, tile)]
    starts = [
        np.linspace(0, have - each, n + 1).round().astype(int) for have, each, n in zip(volume.shape, tile, steps)
    ]
    weight = np.zeros(patch)
    weight[tuple(each // 2 for each in patch)] = 1
    weight = gaussian_filter(weight, [each / 8 for each in patch], mode="constant")
    weight = torch.from_numpy(weight / weight.max() * 10).half().float()
    weight[weight == 0] = weight[weight > 0].min()
    weight = weight.reshape(tile)
    total, weights = torch.zeros(3, *volume.shape), torch.zeros(volume.shape)
    mirrors = [*chain.from_iterable(combinations(mirror_axes, count) for count in range(len(mirror_axes) + 1))]
    for place, mirror in product(product(*starts), mirrors):
        box, flip = tuple(slice(at, at + each) for at, each in zip(place, tile)), [axis + 2 for axis in mirror]
        found = network(volume[box].reshape(1, 1, *patch).flip(flip)).flip(flip)
        total[(slice(None), *box)] += found.reshape(3, *tile) * weight
        weights[box] += weight
    return (total / weights)[(slice(None), *inside)].numpy()


models, file, output = map(Path, sys.argv[1:])
model, settings = (json.loads((models / name).read_text()) for name in ("model.json", "locator.json"))
scan = nib.load(file)
straight = nib.as_closest_canonical(scan)
volume, labels = straight.get_fdata(dtype=np.float32), np.zeros(straight.shape, np.uint8)
with torch.no_grad():
    box = window(volume, straight.affine, torch.export.load(models / "locator.pt2").module(), settings)
    low, part = cropped(volume[box])
    values = torch.from_numpy(part.copy())
    where = torch.from_numpy(binary_fill_holes(part != 0)) if model["nonzero"] else values == values
    values[where] = (values[where] - values[where].mean()) / values[where].std(correction=0).clamp_min(1e-8)
    axes, mm = model["axes"], voxel_sizes(straight.affine).astype(np.float32).tolist()
    part, mm = values.numpy().transpose(axes), [mm[axis] for axis in axes]
    chances = {}
    for name, member in model["members"].items():
        target = [own if want is None else want for own, want in zip(mm, member["spacing"])]
        thick = [each for each in (mm, target) if max(each) / min(each) > 3][:1]
        longest = [axis for each in thick for axis in range(3) if each[axis] == max(each)]
        axis = longest[0] if len(longest) == 1 else None
        shape = [max(1, round(own / want * count)) for own, want, count in zip(mm, target, part.shape)]
        network = torch.export.load(models / f"model_{len(member['patch_size'])}d.pt2").module()
        seen = resampled(part, shape, axis, cubic).astype(np.float32)
        logits = logits_of(network, seen, member["patch_size"], member["mirror_axes"])
        logits = np.stack([resampled(each, part.shape, axis, linear) for each in logits])
        chances[name] = torch.from_numpy(logits).softmax(0).numpy()
chosen = {structure: tuple(sorted(names)) for structure, names in model["members_of"].items()}
means = {names: sum(chances[name] for name in names) / len(names) for names in {*chosen.values()}}
background = sum(mean[0] for mean in means.values()) / len(means)
found = np.stack([background, means[chosen["VS"]][1], means[chosen["cochlea"]][2]]).argmax(0)
place = tuple(slice(edge.start or 0, None) for edge in box)
place = tuple(slice(edge.start + at, edge.start + at + n) for edge, at, n in zip(place, low, values.shape))
labels[place] = found.transpose(np.argsort(axes))
for step in model["keep_largest_component_of"]:
    parts, count = label(np.isin(labels, step), np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel())[1:]
    labels[(parts > 0) & ~np.isin(parts, 1 + np.flatnonzero(sizes == sizes.max(initial=0)))] = 0
back = nib.orientations.ornt_transform(nib.io_orientation(straight.affine), nib.io_orientation(scan.affine))
nib.save(nib.Nifti1Image(nib.apply_orientation(labels, back).astype(np.uint8), scan.affine), output)
