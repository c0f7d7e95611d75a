"""Make the folder that the bundles read from CrossMoDA 2021, 2022 or 2023, from VS-SEG, or from any scans and a table.

Scans stay where they are and are linked to; nothing of the input is changed. docs/data.md tells of each set.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from plugins.data.crossmoda import SPLITS, crossmoda_datalist, has_split, is_release_2023
from plugins.data.layout import Entry, Rules, write_layout
from plugins.data.names import split_name
from plugins.data.rtstruct import CONTOUR_NAMES
from plugins.data.vs_seg import Found, vs_seg_entries
from plugins.errors import InputError, show_input_errors_as_sentences

MERGE_2023 = {1: 1, 2: 1, 3: 2}
"""1 and 2, the two parts of the VS, become 1; the cochlea, 3, becomes 2."""

COLUMNS = ("file", "what", "case")
KINDS = {"cet1": "training_source", "hrt2": "training_target", "validation": "validation", "label": "label"}


def crossmoda_entries(folder: Path) -> Found:
    """The scans of a release of CrossMoDA as it was unpacked, of the splits that are there.

    Raises:
        InputError: as :func:`plugins.data.crossmoda.crossmoda_datalist`, of which the source must be there.
    """
    new = is_release_2023(folder)
    entries, left_out = [], []
    for split in SPLITS:
        if split != "training_source" and not has_split(folder, split, new):
            left_out.append((split, f"{folder} has no folder of it; unpack it there if it is needed"))
            continue
        for item in crossmoda_datalist(folder, split, new):
            label = Path(item["label"]) if "label" in item else None
            entries.append(Entry(item["case"], split, Path(item["image"]), label, item["site"]))
    return entries, left_out


def table_entries(table: Path, same_patients: bool = False) -> Found:
    """The scans that a CSV table names: columns ``file``, ``what`` and, where file names do not say it, ``case``.

    Args:
        table: ``what`` is ``ceT1``, ``hrT2``, ``validation`` (an hrT2 to be segmented at the end) or ``label``. Paths
            are relative to the table. ``case`` is, if not given, the file's name less ending and ``_ceT1``, ``_hrT2``
            or ``_Label``.
        same_patients: a case may be both ceT1 and hrT2; its label is then that of the ceT1.

    Raises:
        InputError: if the table cannot be read, or names a missing file, an unknown kind, or a file or a case twice.
    """
    scans: dict[tuple[str, str], Path] = {}
    named: dict[Path, tuple[int, str, str]] = {}
    for number, row in enumerate(_rows(table), start=2):
        path = table.absolute().parent / (row["file"] or "").strip()
        kind = KINDS.get((row["what"] or "").strip().lower())
        if kind is None:
            raise InputError(f"{table}: line {number} says {row['what']!r}. Give ceT1, hrT2, validation or label.")
        if not path.exists() or path == table.absolute().parent:
            raise InputError(f"{path}: does not exist, though line {number} of {table} names it. Correct the table.")
        case = (row.get("case") or "").strip() or split_name(path.name.removesuffix(".dcm"))[0]
        if (case, kind) in scans:
            raise InputError(f"{table}: line {number} is a second {row['what']} of case {case}. Give it another case.")
        before, its_case, its_kind = named.setdefault(path.resolve(), (number, case, kind))
        if before != number and (case != its_case or {kind, its_kind} != {"training_target", "validation"}):
            raise InputError(f"{path}: is named by lines {before} and {number} of {table}. Name each file once.")
        scans[case, kind] = path
    entries = []
    for (case, split), path in scans.items():
        if split == "label":
            if not any((case, kind) in scans for kind in SPLITS):
                raise InputError(
                    f"{path}: no scan in {table} has its case {case}. Give both the same in a column case."
                )
            continue
        splits = [kind for kind in SPLITS if (case, kind) in scans]
        if len(splits) > 1 and not same_patients:
            cure = "Leave one out, or allow it by --same_patients"
            raise InputError(f"{table}: case {case} is in {' and '.join(splits)}. {cure}.")
        labelled = [splits[0]] if splits[0] == "training_source" else splits
        entries.append(Entry(case, split, path, scans.get((case, "label")) if split in labelled else None))
    lacking = [entry for entry in entries if entry.split == "training_source" and entry.label is None]
    left_out = [(str(entry.image), "has no label in the table; add a line for it") for entry in lacking]
    return [entry for entry in entries if entry not in lacking], left_out


def _rows(table: Path) -> list[dict[str, Any]]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{table}: cannot be read as a table ({error}). Save it as CSV in UTF-8.") from error
    lines = text.splitlines()
    reader = csv.DictReader(lines, delimiter=";" if lines and ";" in lines[0] else ",")
    reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or []]
    if not {"file", "what"} <= set(reader.fieldnames):
        raise InputError(f"{table}: its first line has no columns file and what. Write 'file,what' above the others.")
    for name in reader.fieldnames:
        if name in COLUMNS and reader.fieldnames.count(name) > 1:
            raise InputError(f"{table}: has more than one column {name!r}. Keep the one that is meant.")
        if name not in COLUMNS and (meant := get_close_matches(name, {*COLUMNS} - {*reader.fieldnames}, 1, 0.8)):
            raise InputError(f"{table}: has a column {name!r}. Call it {meant[0]} if it is meant so, else otherwise.")
    return [row for row in reader if any(row.values())]


def report(summary: dict[str, Any]) -> str:
    """A summary in words."""
    lines = []
    for split, found in summary["splits"].items():
        sites = ", ".join(f"{site} {count}" for site, count in found["sites"].items())
        smallest, largest = (
            " x ".join(f"{size:.3g}" for size in found["spacing_mm"][which]) for which in ("smallest", "largest")
        )
        lines.append(
            f"{split}: {found['scans']} scans, {found['labels']} with labels ({sites}); {smallest} to {largest} mm"
        )
        lines += [
            f"    {name}: {volume['smallest']:.3g} to {volume['largest']:.3g} ml, median {volume['median']:.3g}"
            for name, volume in found["ml"].items()
        ]
    for name, count in summary["unknown_structures"].items():
        lines.append(f"structure {name!r} was left out of {count} labels; --vs or --cochlea take it in")
    for title, key in (("could not be used", "faults"), ("left out", "left_out")):
        lines += [f"{title}: {each['file']}: {each['why'].removeprefix(each['file'] + ': ')}" for each in summary[key]]
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(prog="python -m plugins.data.prepare", description=__doc__)
    kinds = command.add_subparsers(dest="kind", required=True)
    each = argparse.ArgumentParser(add_help=False)
    each.add_argument("input", type=Path, help="folder of the data set, or the table")
    each.add_argument("output_dir", type=Path, help="the folder to be made")
    each.add_argument("--copy", action="store_true", help="copy scans instead of linking to them")
    each.add_argument("--incomplete", action="store_true", help="take ceT1 scans whose label lacks VS or cochlea")
    contours = argparse.ArgumentParser(add_help=False)
    for option, label in (("--vs", 1), ("--cochlea", 2)):
        names = [*CONTOUR_NAMES[label]]
        contours.add_argument(option, nargs="+", default=names, help=f"names of contours: {' '.join(names)}")
    contours.add_argument("--same_patients", action="store_true", help="a patient may be in source and target")
    strict: dict[str, Any] = {"allow_abbrev": False}
    about = "a release of CrossMoDA as it was unpacked"
    crossmoda = kinds.add_parser("crossmoda", parents=[each], help=about, **strict)
    crossmoda.add_argument("--keep_labels", action="store_true", help="also link the labels as they were released")
    about = "VS-SEG of TCIA: DICOM with RT Structure Sets"
    vs_seg = kinds.add_parser("vs-seg", parents=[each, contours], help=about, **strict)
    vs_seg.add_argument("--ceT1", default="t1", help="what the description of a ceT1 series holds: t1")
    vs_seg.add_argument("--hrT2", default="t2", help="what the description of an hrT2 series holds: t2")
    vs_seg.add_argument("--target", type=float, default=0.43, help="share of the patients whose hrT2 is a target: 0.43")
    vs_seg.add_argument(
        "--validation", type=float, default=0.14, help="share of those to be segmented at the end: 0.14"
    )
    about = "scans that a CSV table names: columns file, what (ceT1, hrT2, validation, label) and, where needed, case"
    kinds.add_parser("table", parents=[each, contours], help=about, **strict)
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare from the command line; 1 if a scan could not be used."""
    show_input_errors_as_sentences()
    given = parser().parse_args(arguments)
    rules: dict[str, Any] = {"copy": given.copy, "need_all": not given.incomplete}
    if given.kind == "crossmoda":
        entries, left_out = crossmoda_entries(given.input)
        rules |= {"merge": MERGE_2023 if is_release_2023(given.input) else None, "keep_labels": given.keep_labels}
    else:
        rules["names"] = {1: tuple(given.vs), 2: tuple(given.cochlea)}
        if given.kind == "vs-seg":
            contrasts, shares = (given.ceT1, given.hrT2), (given.target, given.validation)
            entries, left_out = vs_seg_entries(given.input, contrasts, shares, given.same_patients)
        else:
            entries, left_out = table_entries(given.input, given.same_patients)
    summary = write_layout(given.output_dir, entries, Rules(**rules), left_out)
    print(report(summary))
    return 1 if summary["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
