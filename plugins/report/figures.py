"""Pictures of a report as data URIs, and curves as SVG that takes the colours of the page."""

from __future__ import annotations

import base64
import gc
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
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
from plugins.files import whole_file

StrPath = str | os.PathLike[str]
Series = Mapping[str, Sequence[tuple[float, float]]]

INK = "#0a0b0c"  # becomes the page's own colour of text
LINES = (("#3b7dd8", "-"), ("#d1570e", "--"), ("#2e9460", "-."), ("#a55cc0", ":"), ("#8c7a12", (0, (5, 1, 1, 1, 1, 1))))
PERCENTILES = (0.5, 99.8)
QUALITY, PRINT_DPI = 82, 200
WIDEST = 7
MOST_POINTS = 300
HEAD_CHARACTERS = 30  # of a line above a picture, which would run into the next one


class CaseFigures(Mapping[str, str]):
    """:func:`draw_cases` of each scan alone, as a data URI: drawn when it is asked for, as memory holds only one.

    Args:
        files: case to ``image``, the scan, and ``maps``, head of the column to label map.
    """

    def __init__(self, files: Mapping[str, Mapping[str, Any]]):
        self._files = files

    def __getitem__(self, case: str) -> str:
        with _cycles_collected():
            return data_uri(draw_cases([("", self._files[case]["image"], self._files[case]["maps"])]))

    def __contains__(self, case: object) -> bool:
        return case in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def draw_cases(cases: Sequence[tuple[str, StrPath, Mapping[str, StrPath]]]) -> Figure:
    """Scans beside themselves with the contours of every label map; a row for each structure, more if it is long.

    Args:
        cases: name, scan, and head of the column to label map.
    """
    blocks = []
    for case, image_file, labels in cases:
        image, spacing = read_axial(image_file)
        maps = {head: read_axial(path, label=True)[0] for head, path in labels.items()}
        rows = rows_to_draw([*maps.values()]) or {image.shape[2] // 2: ["no structure"]}
        blocks += [(case, image, spacing, maps, index, names) for index, names in rows.items()]
    figure, lines = _lines([1 + len(maps) for _, _, _, maps, _, _ in blocks])
    for (case, image, spacing, maps, index, names), axes in zip(blocks, lines, strict=True):
        first = next((volume for volume in maps.values() if volume.any()), np.zeros_like(image))
        window = window_around(first[:, :, index] > 0, spacing)
        scale = _scale(image)
        draw_slice(axes[0], image, index, spacing, scale=scale)
        axes[0].set_title("scan", fontsize=8)
        where = f"{', '.join(names)}: slice {index + 1}"
        axes[0].set_ylabel(f"{case}\n{where}".lstrip(), fontsize=7, parse_math=False)
        for axis, (head, volume) in zip(axes[1:], maps.items(), strict=True):
            draw_slice(axis, image, index, spacing, window, scale=scale)
            draw_contours(axis, volume, index, spacing, window)
            axis.set_title(fill(head, HEAD_CHARACTERS), parse_math=False, fontsize=8)
    return figure


def translation_figure(case: Mapping[str, Any], translations: Mapping[str, StrPath]) -> str:
    """:func:`draw_translations` of one scan, as a data URI."""
    return data_uri(draw_translations([(case, translations)]))


def draw_translations(cases: Sequence[tuple[Mapping[str, Any], Mapping[str, StrPath]]]) -> Figure:
    """Source slices beside their translations, all at one intensity scale, with the contours of the source's label.

    All show the voxels of the label, as methods may have other windows. The scale is that of each volume from its 0.5th
    to its 99.8th percentile; all slices are drawn from 0 to 1 of it.

    Args:
        cases: a scan with ``case``, ``image`` and ``label``, and head of the column to volume.
    """
    figure, lines = _lines([1 + len(translations) for _, translations in cases])
    for (case, translations), axes in zip(cases, lines, strict=True):
        label = read_axial(case["label"], label=True)[0]
        index = slice_with_both(label)
        for axis, (head, path) in zip(axes, {"ceT1": case["image"], **translations}.items(), strict=True):
            volume, spacing = read_axial(path, on=case["label"])
            low, high = _scale(volume)
            draw_slice(axis, (volume - low) / (high - low), index, spacing, scale=(0.0, 1.0))
            draw_contours(axis, label, index, spacing)
            axis.set_title(fill(head, HEAD_CHARACTERS), parse_math=False, fontsize=8)
        name = f"{case['case']}\n" if len(cases) > 1 else ""
        axes[0].set_ylabel(f"{name}slice {index + 1}", fontsize=7, parse_math=False)
    return figure


def draw_points(rows: Sequence[tuple[str, NDArray[Any], NDArray[Any], Mapping[str, NDArray[Any]]]]) -> Figure:
    """Positions on slices: a row for each slice, a column for each set of positions.

    Args:
        rows: name, slice :math:`(R, A)`, its label map :math:`(R, A)`, and head to positions :math:`(n, 2)` in pixels.
    """
    pixels = (1.0, 1.0, 1.0)
    figure, lines = _lines([1 + len(points) for _, _, _, points in rows])
    for (name, image, label, points), axes in zip(rows, lines, strict=True):
        for axis, (head, places) in zip(axes, {"slice": np.empty((0, 2)), **points}.items(), strict=True):
            draw_slice(axis, image[:, :, None], 0, pixels, scale=_scale(image))
            draw_contours(axis, label[:, :, None], 0, pixels)
            axis.scatter(places[:, 0] + 0.5, places[:, 1] + 0.5, s=12, c="#ffd84d", marker="x", linewidths=0.9)
            axis.set_title(fill(head, HEAD_CHARACTERS), parse_math=False, fontsize=8)
        axes[0].set_ylabel(name, fontsize=8, parse_math=False)
    return figure


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


def data_uri(figure: Figure) -> str:
    """A figure as a data URI."""
    content = io.BytesIO()
    figure.savefig(content, format="webp", bbox_inches="tight", pad_inches=0.05, pil_kwargs={"quality": QUALITY})
    return "data:image/webp;base64," + base64.b64encode(content.getvalue()).decode("ascii")


@contextmanager
def _cycles_collected() -> Iterator[None]:
    """Free what the block made at once: the parts of a figure refer to each other, and Python would keep dozens."""
    gc.freeze()  # so only what comes after is looked at, which is quick
    try:
        yield
    finally:
        gc.collect()
        gc.unfreeze()


def write_png(figure: Figure, path: StrPath) -> None:
    """A figure as a PNG file for print."""
    with whole_file(path) as part:
        figure.savefig(part, format="png", dpi=PRINT_DPI, bbox_inches="tight", pad_inches=0.05)


def _lines(lengths: Sequence[int]) -> tuple[Figure, list[list[Axes]]]:
    """A figure, and the axes of each line of pictures; a line with more than :data:`WIDEST` goes over several rows."""
    columns = min(max(lengths), WIDEST)
    rows = [-(-length // columns) for length in lengths]
    figure, axes = panels(sum(rows), columns)
    lines, first = [], 0
    for length, taken in zip(lengths, rows, strict=True):
        line = axes[first : first + taken].ravel().tolist()
        for unused in line[length:]:
            unused.set_axis_off()
        lines.append(line[:length])
        first += taken
    return figure, lines


def _svg(figure: Figure, name: str) -> str:
    content = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = content.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL).replace(INK, "currentColor")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    return re.sub(r'(href="|url\()#', rf"\1#{name}-", text)
