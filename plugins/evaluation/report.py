"""The report of a run: metrics, table, pictures and a page that shows them."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from rich.console import Console

from plugins.evaluation.compare import MEASURES, compare_rounds, decision_lines, results_table, round_title, table_rows
from plugins.evaluation.labels import LABEL_ENDING
from plugins.evaluation.metrics import STRUCTURE_TITLES
from plugins.evaluation.pictures import case_picture, translation_picture
from plugins.files import whole_file, write_json
from plugins.state import read_state

MEASURE_TITLES = dict(zip(MEASURES, ("Dice", "ASSD [mm]"), strict=True))
TRANSLATED_CASES = 4

NOTE = """<p>Mean ± standard deviation over cases. A failure is a Dice below 0.5 or an empty mask. A structure missed,
or found where there is none, counts with Dice 0 and ASSD 350 mm. ASSD pools the surfaces of both sides.</p>"""

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse}td,th{padding:.25rem .8rem;border-bottom:1px solid #ccc;text-align:right}
td:nth-child(-n+2),th:nth-child(-n+2){text-align:left}img{max-width:100%}
.vs{color:#ff5050}.cochlea{color:#00a0c0}"""


def write_report(
    validation: Sequence[Mapping[str, Any]],
    pred_dirs: Mapping[str, str | os.PathLike[str]],
    metrics_files: Mapping[str, str | os.PathLike[str]],
    output_dir: str | os.PathLike[str],
    truth: Mapping[str, str | os.PathLike[str]] | None = None,
    source: Sequence[Mapping[str, Any]] = (),
    translations: Mapping[str, str | os.PathLike[str]] | None = None,
    decisions: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Write ``metrics.json``, ``table.txt``, ``pictures/*.png`` and ``index.html`` into a folder.

    Args:
        validation: the hrT2 scans, ``{"case", "image"}`` each; a picture for each.
        pred_dirs: round (``round_0``, ...) to the folder of its label maps ``<case>_Label.nii.gz``.
        metrics_files: round to the file that :func:`evaluate_folder` wrote; empty where there are no references.
        output_dir: the folder.
        truth: case to reference label map.
        source: ceT1 scans with label maps; the first few are shown beside their translations.
        translations: head of the column to the folder of the translated volumes.
        decisions: round to a sentence on whether its model was accepted.

    Returns:
        The content of ``metrics.json``: round to metrics, and ``paired_t_test``.
    """
    output_dir, truth = Path(output_dir), truth or {}
    rounds = {name: read_state(path, dict[str, Any], "Evaluate again") for name, path in metrics_files.items()}
    tests = compare_rounds(rounds)
    content: dict[str, Any] = {**rounds, "paired_t_test": tests}
    write_json(output_dir / "metrics.json", content)
    with whole_file(output_dir / "table.txt") as part, part.open("w", encoding="utf-8") as file:
        console = Console(file=file, width=100)
        if rounds:
            console.print(results_table(rounds, decisions))
        else:
            console.print("\n".join(["no reference label maps, no metrics", *decision_lines(decisions)]), markup=False)

    pictures = []
    if source and translations:
        pictures.append(("ceT1 and its translations", "pictures/translations.png"))
        translation_picture(source[:TRANSLATED_CASES], translations, output_dir / pictures[-1][1])
    for scan in validation:
        labels = {"reference": truth[scan["case"]]} if scan["case"] in truth else {}
        labels |= {round_title(name): Path(pred, scan["case"] + LABEL_ENDING) for name, pred in pred_dirs.items()}
        pictures.append((scan["case"], f"pictures/{scan['case']}.png"))
        case_picture(scan["image"], labels, output_dir / pictures[-1][1], title=scan["case"])
    with whole_file(output_dir / "index.html") as part:
        part.write_text(_page(rounds, tests, pictures, decision_lines(decisions)), encoding="utf-8")
    return content


def _page(
    rounds: Mapping[str, Mapping[str, Any]],
    tests: Sequence[Mapping[str, Any]],
    pictures: Sequence[tuple[str, str]],
    decisions: Sequence[str],
) -> str:
    parts = ["<h1>Segmentation of hrT2 without hrT2 labels</h1>"]
    if rounds:
        parts += ["<h2>Results</h2>", _html_table(*table_rows(rounds))]
        parts.append(NOTE)
    else:
        parts.append("<p>There are no reference label maps, hence no metrics.</p>")
    parts += [f"<p>{html.escape(line)}.</p>" for line in decisions]
    if tests:
        parts += ["<h2>Paired t-tests</h2>", _html_table(*_test_rows(tests))]
    parts.append(f"<h2>Pictures</h2><p>Contours: {_legend()}. The patient's right is on the left.</p>")
    parts += [
        f"<h3>{html.escape(title)}</h3><img src={quoteattr(quote(path))} alt={quoteattr(title)}>"
        for title, path in pictures
    ]
    body = "\n".join(parts)
    head = f'<meta charset="utf-8"><title>Report</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en">{head}\n{body}\n</html>\n'


def _legend() -> str:
    return ", ".join(f"<b class={quoteattr(name)}>{title}</b>" for name, title in STRUCTURE_TITLES.items())


def _test_rows(tests: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for test in tests:
        compared = f"{round_title(test['after'])} against {round_title(test['before'])}"
        what = f"{MEASURE_TITLES[test['measure']]} {STRUCTURE_TITLES[test['structure']]}"
        numbers = ["-" if test[key] is None else f"{test[key]:.4g}" for key in ("difference", "t", "p")]
        rows.append([compared, what, str(test["n"]), *numbers])
    return ["compared", "measure", "cases", "mean difference", "t", "p"], rows


def _html_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return "<table>" + line(heads, "th") + "".join(line(row, "td") for row in rows) + "</table>"
