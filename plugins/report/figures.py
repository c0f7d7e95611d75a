"""Pictures of a report as data URIs, and curves as SVG that takes the colours of the page."""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from plugins.evaluation.pictures import (
    draw_contours,
    draw_slice,
    panels,
    read_axial,
    rows_to_draw,
    slice_with_both,
    window_around,
)

StrPath = str | os.PathLike[str]
Series = Mapping[str, Sequence[tuple[float, float]]]

INK = "#0a0b0c"  # becomes the page's own colour of text
LINES = (("#3b7dd8", "-"), ("#d1570e", "--"), ("#2e9460", "-."), ("#a55cc0", ":"), ("#8c7a12", (0, (5, 1, 1, 1, 1, 1))))
PERCENTILES = (0.5, 99.8)
QUALITY = 82
MOST_POINTS = 300


def case_figure(image_file: StrPath, labels: Mapping[str, StrPath]) -> str:
    """A scan beside itself with the contours of every label map; a row for each structure.

    Args:
        image_file: the scan.
        labels: head of the column to label map.

    Returns:
        a data URI.
    """
    image, spacing = read_axial(image_file)
    scale = _scale(image)
    maps = {head: read_axial(path, label=True)[0] for head, path in labels.items()}
    rows = rows_to_draw([*maps.values()]) or {image.shape[2] // 2: ["no structure"]}
    first = next((volume for volume in maps.values() if volume.any()), np.zeros_like(image))
    figure, axes = panels(len(rows), 1 + len(maps))
    for (index, names), line in zip(rows.items(), axes, strict=True):
        window = window_around(first[:, :, index] > 0, spacing)
        draw_slice(line[0], image, index, spacing, scale=scale)
        line[0].set_title("scan", fontsize=8)
        line[0].set_ylabel(f"{', '.join(names)}: slice {index + 1}", fontsize=7)
        for axis, (head, volume) in zip(line[1:], maps.items(), strict=True):
            draw_slice(axis, image, index, spacing, window, scale=scale)
            draw_contours(axis, volume, index, spacing, window)
            axis.set_title(head, parse_math=False, fontsize=8)
    return _picture(figure)


def translation_figure(case: Mapping[str, Any], translations: Mapping[str, StrPath]) -> str:
    """One source slice beside its translations, all at one intensity scale, with the contours of the source's label.

    The scale is that of each volume from its 0.5th to its 99.8th percentile; all slices are drawn from 0 to 1 of it.

    Args:
        case: a scan with ``image`` and ``label``.
        translations: head of the column to volume.

    Returns:
        a data URI.
    """
    label = read_axial(case["label"], label=True)[0]
    index = slice_with_both(label)
    figure, axes = panels(1, 1 + len(translations))
    for axis, (head, path) in zip(axes[0], {"ceT1": case["image"], **translations}.items(), strict=True):
        volume, spacing = read_axial(path)
        low, high = _scale(volume)
        draw_slice(axis, (volume - low) / (high - low), index, spacing, scale=(0.0, 1.0))
        draw_contours(axis, label, index, spacing)
        axis.set_title(head, parse_math=False, fontsize=8)
    axes[0][0].set_ylabel(f"slice {index + 1}", fontsize=7)
    return _picture(figure)


def points_figure(image: NDArray[Any], points: Mapping[str, NDArray[Any]]) -> str:
    """Positions on slices :math:`(R, A)`, a column for each set of them; points are :math:`(n, 2)`, in pixels."""
    figure, axes = panels(1, 1 + len(points))
    for axis, (head, places) in zip(axes[0], {"slice": np.empty((0, 2)), **points}.items(), strict=True):
        draw_slice(axis, image[:, :, None], 0, (1.0, 1.0, 1.0), scale=_scale(image))
        axis.scatter(*(places.T + 0.5), s=16, c="#ffd84d", marker="x", linewidths=1.1)
        axis.set_title(head, parse_math=False, fontsize=8)
    return _picture(figure)


def curves(name: str, series: Series, x_label: str, y_label: str = "") -> str:
    """Lines as inline SVG in the page's colours; they differ in pattern too.

    Args:
        name: unique in the page; ids in the SVG begin with it.
        series: legend to points.
        x_label: below.
        y_label: at the side.

    Returns:
        SVG, without a title of its own.
    """
    figure = Figure(figsize=(5.2, 2.6), layout="constrained")
    axis = figure.subplots()
    for index, (legend, points) in enumerate(series.items()):
        colour, pattern = LINES[index % len(LINES)]
        few = thinned(points)
        marker = "o" if len(few) < 3 else None
        axis.plot(*zip(*few, strict=True), color=colour, linestyle=pattern, label=legend, marker=marker, linewidth=1.6)
    axis.set(xlabel=x_label, ylabel=y_label)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(colors=INK)
    for spine in axis.spines.values():
        spine.set_color(INK)
    axis.xaxis.label.set_color(INK)
    axis.yaxis.label.set_color(INK)
    if series:
        axis.legend(frameon=False, labelcolor=INK, fontsize=8)
    return _svg(figure, name)


def thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """At most :data:`MOST_POINTS` of the points: means of as many neighbours as it takes."""
    size = -(-len(points) // MOST_POINTS)
    if size <= 1:
        return points
    groups = [points[first : first + size] for first in range(0, len(points), size)]
    return [(float(np.mean([x for x, _ in group])), float(np.mean([y for _, y in group]))) for group in groups]


def _scale(volume: NDArray[Any]) -> tuple[float, float]:
    low, high = (float(value) for value in np.percentile(volume, PERCENTILES))
    return low, max(high, low + 1e-6)


def _picture(figure: Figure) -> str:
    FigureCanvasAgg(figure)
    content = io.BytesIO()
    figure.savefig(content, format="webp", bbox_inches="tight", pad_inches=0.05, pil_kwargs={"quality": QUALITY})
    return "data:image/webp;base64," + base64.b64encode(content.getvalue()).decode("ascii")


def _svg(figure: Figure, name: str) -> str:
    content = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = content.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL).replace(INK, "currentColor")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    return re.sub(r'(href="|url\()#', rf"\1#{name}-", text)
