"""Tables of per-case values: CSV with a row for every method, case and structure."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from plugins.data.crossmoda import site_of
from plugins.errors import InputError
from plugins.evaluation.metrics import CASE_MEASURES, FAILURE_DICE, STRUCTURES, CaseMetrics, StructureMetrics, not_found
from plugins.files import whole_file
from plugins.state import read_state

StrPath = str | os.PathLike[str]
Methods = dict[str, dict[str, CaseMetrics]]
"""Method to case to structure to measures."""

Missing = Literal["refuse", "penalise"]

NEEDED = ("case", "structure", "dice", "assd_mm")
OF_METRICS_FILES = "Give the metrics.json of an evaluation"


@dataclass(frozen=True)
class CaseTable:
    """Per-case values of any number of methods.

    Attributes:
        methods: method to case to structure to measures, in the order of the table.
        sites: case to its site.
    """

    methods: Methods
    sites: dict[str, str]


class _Site(TypedDict):
    cases: list[str]


class _MetricsFile(TypedDict):
    cases: dict[str, dict[str, dict[str, Any]]]
    sites: NotRequired[dict[str, _Site]]


def read_cases(path: StrPath) -> CaseTable:
    """Read a CSV with the columns ``case``, ``structure``, ``dice`` and ``assd_mm``.

    ``method`` and ``site`` may stand beside them, and the other measures of :data:`CASE_MEASURES`. Without ``site``,
    the name of the case tells it. Structures are VS and cochlea, in capitals or not. A structure that was not found has
    the challenge's values, Dice 0 and ASSD 350 mm. One that neither side has, has no values, and ``both`` in a column
    ``empty``. Other columns are not read.

    Args:
        path: UTF-8, with commas or semicolons.

    Raises:
        InputError: naming the line, if a column, a value or a name is missing, a value is no number or out of its
            range, a structure is unknown, a row stands twice, or a case has two sites.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}). Give a CSV file in UTF-8.") from error
    reader = csv.DictReader(lines, delimiter=";" if lines and ";" in lines[0] else ",", strict=True)
    columns = _columns(reader, str(path))
    methods: Methods = {}
    sites: dict[str, str] = {}
    places: dict[tuple[str, str, str], int] = {}
    try:
        for row in reader:
            place = f"{path}, line {reader.line_num}"
            method, case, structure = _names(row, place)
            earlier = places.setdefault((method, case, structure), reader.line_num)
            if earlier != reader.line_num:
                of = f" of {method}" if method else ""
                raise InputError(
                    f"{place}: {structure} of {case}{of} stands in line {earlier} too. Remove one of them."
                )
            site = (row.get("site") or "").strip() or site_of(case)
            if sites.setdefault(case, site) != site:
                raise InputError(
                    f"{place}: {case} is of site {site}, but of {sites[case]} before. Correct one of them."
                )
            values = _values(row, [name for name in CASE_MEASURES if name in columns], place)
            methods.setdefault(method, {}).setdefault(case, {})[structure] = values
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: is no CSV ({error}). Correct the line.") from error
    if not methods:
        raise InputError(f"{path} has no rows. Give a row for every case and structure.")
    return CaseTable(methods, sites)


def read_methods(methods: StrPath | Mapping[str, StrPath]) -> CaseTable:
    """Read the methods to be compared.

    Args:
        methods: a table for :func:`read_cases` with the column ``method``; or name to the ``metrics.json`` of an
            evaluation, or to a table of that method alone.

    Raises:
        InputError: as :func:`read_cases`; if a method has no name, or a file is no metrics file.
    """
    if not isinstance(methods, Mapping):
        table = read_cases(methods)
        if "" in table.methods:
            raise InputError(f"{methods} does not name the method of each row. Fill a column method.")
        return table
    values: Methods = {}
    sites: dict[str, str] = {}
    for name, path in methods.items():
        if str(path).lower().endswith(".csv"):
            table = read_cases(path)
            values[name] = table.methods[one_method(table, None, str(path))]
        else:
            table = _read_metrics(name, path)
            values[name] = table.methods[name]
        for case, site in table.sites.items():
            if sites.setdefault(case, site) != site:
                raise InputError(f"{path}: {case} is of site {site}, but of {sites[case]} before. Correct one of them.")
    return CaseTable(values, sites)


def one_method(table: CaseTable, method: str | None, path: str) -> str:
    """The method of a table that is meant.

    Raises:
        InputError: if it is not there, or not told apart from others.
    """
    names = list(table.methods)
    if method is None and len(names) == 1:
        return names[0]
    if method in table.methods:
        return str(method)
    fault = f"no method {method}" if method is not None else f"{len(names)} methods"
    raise InputError(f"{path} has {fault}. Set method to one of {', '.join(name or '(no name)' for name in names)}.")


def complete(methods: Methods, missing: Missing = "refuse") -> tuple[Methods, list[dict[str, str]]]:
    """Make sure that all methods have all cases, and all cases all structures.

    Args:
        methods: as they were read.
        missing: what to do with a row that one method lacks; ``refuse`` it, or ``penalise`` it as a structure that was
            not found, as the challenge does.

    Returns:
        The methods with their cases in the same order, and ``method``, ``case`` and ``structure`` of each row that was
        filled in.

    Raises:
        InputError: naming the first row that is missing.
    """
    cases = list(dict.fromkeys(case for rows in methods.values() for case in rows))
    filled = []
    whole: Methods = {}
    for method, rows in methods.items():
        for case in cases:
            there = rows.get(case, {})
            for structure in STRUCTURES:
                if structure not in there:
                    filled.append({"method": method, "case": case, "structure": structure})
            both = {structure: there.get(structure) or not_found() for structure in STRUCTURES}
            whole.setdefault(method, {})[case] = both
    if filled and missing == "refuse":
        method, case, structure = filled[0].values()
        what = f"{structure} of {case}" + (f" of the method {method}" if method else "")
        cure = "Add it, leave the case out everywhere, or set missing to penalise to count it as not found"
        raise InputError(f"there is no row for {what}. {cure}.")
    return whole, filled


def write_cases(path: StrPath, methods: Mapping[str, Mapping[str, CaseMetrics]], sites: Mapping[str, str]) -> None:
    """Write what :func:`read_cases` reads; the column ``method`` is left out for one without a name."""
    named = ["method"] if set(methods) != {""} else []
    measures = [name for name in CASE_MEASURES if any(name in row for *_, row in _rows(methods))]
    heads = [*named, "case", "site", "structure", *measures, "failure", "empty"]
    lines = [
        {**row, "method": method, "case": case, "site": sites[case], "structure": structure}
        for method, case, structure, row in _rows(methods)
    ]
    write_csv(path, heads, [[line.get(head) for head in heads] for line in lines])


def write_csv(path: StrPath, heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file, whole or not at all; ``None`` is an empty cell, yes and no are ``true`` and ``false``."""
    with whole_file(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(heads)
        writer.writerows([str(cell).lower() if isinstance(cell, bool) else cell for cell in row] for row in rows)


def _rows(methods: Mapping[str, Mapping[str, CaseMetrics]]) -> Iterable[tuple[str, str, str, StructureMetrics]]:
    for method, cases in methods.items():
        for case, structures in cases.items():
            for structure, row in structures.items():
                yield method, case, structure, row


def _columns(reader: csv.DictReader[str], path: str) -> list[str]:
    columns = [name.strip().lower() for name in reader.fieldnames or ()]
    reader.fieldnames = columns
    absent = [name for name in NEEDED if name not in columns]
    if absent:
        raise InputError(f"{path} has no column {absent[0]}. Give the columns {', '.join(NEEDED)}.")
    twice = sorted({name for name in columns if name and columns.count(name) > 1})
    if twice:
        raise InputError(f"{path} has two columns {twice[0]}. Remove one of them.")
    return columns


def _names(row: Mapping[Any, Any], place: str) -> tuple[str, str, str]:
    if None in row or None in row.values():
        raise InputError(f"{place}: has more or fewer cells than the first line. Correct the row.")
    method, case, structure = (str(row.get(name, "")).strip() for name in ("method", "case", "structure"))
    if not case or ("method" in row and not method):
        raise InputError(f"{place}: {'method' if case else 'case'} is empty. Fill it.")
    if structure.lower() not in STRUCTURES:
        raise InputError(f"{place}: structure is {structure!r}. Give {' or '.join(STRUCTURES)}.")
    return method, case, structure.lower()


def _values(row: Mapping[str, str], measures: Sequence[str], place: str) -> StructureMetrics:
    if (row.get("empty") or "").strip() == "both":
        return {**dict.fromkeys(measures), "failure": False, "empty": "both"}
    values = {name: _number(row[name], name, place) for name in measures}
    return {**values, "failure": bool(values["dice"] < FAILURE_DICE)}


def _number(text: str, name: str, place: str) -> float:
    if not text.strip():
        cure = (
            "Give Dice 0 and ASSD 350 where nothing was found, and 'both' in a column empty where nothing was to find"
        )
        raise InputError(f"{place}: {name} is empty. {cure}.")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    _check_number(value, name, f"{place}: {name} is {text.strip()!r}")
    return value


def _check_number(value: float, name: str, what: str) -> None:
    measure = CASE_MEASURES[name]
    largest = 1.0 if measure.larger_is_better else math.inf
    if not (math.isfinite(value) and 0 <= value <= largest):
        wanted = "a number from 0 to 1" if measure.larger_is_better else "a number of mm, 0 or more"
        raise InputError(f"{what}, not {wanted}. Correct it.")


def _read_metrics(method: str, path: StrPath) -> CaseTable:
    content = read_state(path, _MetricsFile, OF_METRICS_FILES)
    cases: dict[str, CaseMetrics] = content["cases"]
    for case, structures in cases.items():
        for structure in STRUCTURES:
            row = structures.get(structure)
            if row is None or not {"dice", "assd_mm", "failure"} <= row.keys():
                raise InputError(f"{path}: case {case} has no metrics of {structure}. {OF_METRICS_FILES}.")
            for name in CASE_MEASURES.keys() & row.keys():
                value = row[name]
                if value is not None:
                    number = float(value) if isinstance(value, (int, float)) else math.nan
                    _check_number(number, name, f"{path}: {name} of {structure} in {case} is {value!r}")
    if not cases:
        raise InputError(f"{path} has no cases. {OF_METRICS_FILES}.")
    sites = {case: site for site, about in content.get("sites", {}).items() for case in about["cases"]}
    return CaseTable({method: cases}, {case: sites.get(case, site_of(case)) for case in cases})
