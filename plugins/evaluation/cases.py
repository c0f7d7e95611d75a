"""Tables of per-case values: CSV with a row for every method, case and structure."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NotRequired, get_args

from typing_extensions import TypedDict

from plugins.data.crossmoda import site_of
from plugins.errors import InputError
from plugins.evaluation.metrics import (
    CASE_MEASURES,
    FAILURE_DICE,
    PENALTY_MM,
    STRUCTURES,
    CaseMetrics,
    StructureMetrics,
    not_found,
)
from plugins.files import whole_file
from plugins.state import read_state

StrPath = str | os.PathLike[str]
Methods = dict[str, dict[str, CaseMetrics]]
"""Method to case to structure to measures."""
Seeds = dict[str, Methods]
"""Method to seed to case to structure to measures."""

Missing = Literal["refuse", "penalise"]

NEEDED = ("case", "structure", "dice", "assd_mm")
OF_METRICS_FILES = "Give the metrics.json of an evaluation"


@dataclass(frozen=True)
class CaseTable:
    """Per-case values of any number of methods.

    Attributes:
        methods: method to case to structure to measures, in the order of the table; means over seeds where there are.
        sites: case to its site.
        seeds: the values of each seed, of methods whose rows name one.
    """

    methods: Methods
    sites: dict[str, str]
    seeds: Seeds = field(default_factory=dict)

    def each(self, method: str) -> tuple[dict[str, CaseMetrics], dict[str, str]]:
        """Every value of a method, with the sites: what is counted, and means by rules, are of these."""
        if method not in self.seeds:
            return self.methods[method], self.sites
        rows = {
            (case, f"{case}, seed {seed}"): row
            for seed, cases in self.seeds[method].items()
            for case, row in cases.items()
        }
        return {name: row for (_, name), row in rows.items()}, {name: self.sites[case] for case, name in rows}


class _Site(TypedDict):
    cases: list[str]


class _MetricsFile(TypedDict):
    cases: dict[str, dict[str, dict[str, Any]]]
    sites: NotRequired[dict[str, _Site]]


def read_cases(path: StrPath) -> CaseTable:
    """Read a CSV with the columns ``case``, ``structure``, ``dice`` and ``assd_mm``.

    ``method``, ``seed`` and ``site`` may stand beside them, and the other measures of :data:`CASE_MEASURES`. Without
    ``site``, the name of the case tells it. A method that was trained with several seeds has a row for each.
    Structures are VS and cochlea, in capitals or not. A structure that was not found has the challenge's values, Dice 0
    and ASSD 350 mm. One that neither side has, has no values, and ``both`` in a column ``empty``. Other columns are not
    read.

    Args:
        path: UTF-8, with commas or semicolons.

    Raises:
        InputError: naming the line, if a column, a value or a name is missing, a value is no number or out of its
            range, a structure is unknown, a row stands twice, a case has two sites, or a seed lacks a row of another.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}). Give a CSV file in UTF-8.") from error
    reader = csv.DictReader(lines, delimiter=";" if lines and ";" in lines[0] else ",", strict=True)
    columns = _columns(reader, str(path))
    runs: Seeds = {}
    sites: dict[str, str] = {}
    places: dict[tuple[str, str, str, str], int] = {}
    try:
        for row in reader:
            place = f"{path}, line {reader.line_num}"
            method, case, structure = _names(row, place)
            seed = (row.get("seed") or "").strip()
            earlier = places.setdefault((method, seed, case, structure), reader.line_num)
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
            runs.setdefault(method, {}).setdefault(seed, {}).setdefault(case, {})[structure] = values
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: is no CSV ({error}). Correct the line.") from error
    if not runs:
        raise InputError(f"{path} has no rows. Give a row for every case and structure.")
    for method, of_seeds in runs.items():
        if "" in of_seeds and len(of_seeds) > 1:
            raise InputError(
                f"{path}: seed is empty in some rows of {method or 'the table'}. Fill it, or empty it in all."
            )
        _check_seeds(of_seeds, method, str(path))
    means = {method: mean_of_seeds([*of_seeds.values()]) for method, of_seeds in runs.items()}
    return CaseTable(means, sites, {method: of_seeds for method, of_seeds in runs.items() if len(of_seeds) > 1})


def mean_of_seeds(seeds: Sequence[Mapping[str, CaseMetrics]]) -> dict[str, CaseMetrics]:
    """Every measure of every case and structure as its mean over seeds, each with the challenge's values.

    A structure that neither the reference nor a seed's prediction has counts in no mean.
    """
    if len(seeds) == 1:
        return dict(seeds[0])
    return {
        case: {structure: _mean_row([cases[case][structure] for cases in seeds]) for structure in structures}
        for case, structures in seeds[0].items()
    }


def _mean_row(rows: Sequence[StructureMetrics]) -> StructureMetrics:
    counted = [row for row in rows if row["dice"] is not None]
    if not counted:
        return rows[0]
    measures = {
        name: fmean(float(row[name] or 0) for row in counted)
        for name in CASE_MEASURES
        if all(row.get(name) is not None for row in counted)
    }
    return {**measures, "failure": measures["dice"] < FAILURE_DICE}


def _check_seeds(seeds: Methods, method: str, path: str) -> None:
    """Refuse a seed that lacks a row of another, whose mean would be over other cases."""
    rows = {seed: {(case, name) for case, row in cases.items() for name in row} for seed, cases in seeds.items()}
    every = set().union(*rows.values())
    for seed, there in rows.items():
        if absent := sorted(every - there):
            case, structure = absent[0]
            what = f"{structure} of {case}" + (f" of the method {method}" if method else "")
            raise InputError(f"{path}: there is no row for {what} with seed {seed!r}. Add it, or leave the seed out.")


def refuse_own_results(inputs: Iterable[StrPath], outputs: Iterable[StrPath]) -> None:
    """Refuse results that would take the place of what they are computed from.

    Raises:
        InputError: naming the file.
    """
    written = {Path(path).resolve() for path in outputs}
    for path in inputs:
        if Path(path).resolve() in written:
            raise InputError(f"{path} would be replaced by the results. Set another output_dir.")


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
    seeds: Seeds = {}
    sites: dict[str, str] = {}
    for name, path in methods.items():
        if str(path).lower().endswith(".csv"):
            table = read_cases(path)
            method = one_method(table, None, str(path))
            values[name] = table.methods[method]
            seeds |= {name: table.seeds[method]} if method in table.seeds else {}
        else:
            table = _read_metrics(name, path)
            values[name] = table.methods[name]
        for case, site in table.sites.items():
            if sites.setdefault(case, site) != site:
                raise InputError(f"{path}: {case} is of site {site}, but of {sites[case]} before. Correct one of them.")
    return CaseTable(values, sites, seeds)


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
        InputError: naming the first row that is missing; if ``missing`` is neither.
    """
    if missing not in get_args(Missing):
        raise InputError(f"missing is {missing!r}. Give {' or '.join(get_args(Missing))}.")
    cases = list(dict.fromkeys(case for rows in methods.values() for case in rows))
    filled = []
    whole: Methods = {}
    for method, rows in methods.items():
        known = {name for row in rows.values() for values in row.values() for name in values}
        for case in cases:
            there = rows.get(case, {})
            for structure in STRUCTURES:
                if structure not in there:
                    filled.append({"method": method, "case": case, "structure": structure})
            lost = {name: value for name, value in not_found().items() if name in {*known, "failure", "empty"}}
            both = {structure: there.get(structure) or dict(lost) for structure in STRUCTURES}
            whole.setdefault(method, {})[case] = both
    if filled and missing == "refuse":
        method, case, structure = filled[0].values()
        what = f"{structure} of {case}" + (f" of the method {method}" if method else "")
        cure = "Add it, leave the case out everywhere, or set missing to penalise to count it as not found"
        raise InputError(f"there is no row for {what}. {cure}.")
    return whole, filled


def write_cases(
    path: StrPath,
    methods: Mapping[str, Mapping[str, CaseMetrics]],
    sites: Mapping[str, str],
    seeds: Mapping[str, Mapping[str, Mapping[str, CaseMetrics]]] | None = None,
) -> None:
    """Write what :func:`read_cases` reads: the measures that all rows have; no ``method`` for one without a name.

    Args:
        path: the file.
        methods: method to case to structure to measures.
        sites: case to its site.
        seeds: the values of each seed, which are written in place of the means over them.
    """
    runs = [(name, each) for name, cases in methods.items() for each in (seeds or {}).get(name, {"": cases}).items()]
    rows = [
        {**row, "method": method, "seed": seed, "case": case, "site": sites[case], "structure": structure}
        for method, (seed, cases) in runs
        for case, structures in cases.items()
        for structure, row in structures.items()
    ]
    named = [name for name in ("method", "seed") if any(row[name] for row in rows)]
    measures = [name for name in CASE_MEASURES if all(name in row for row in rows)]
    heads = [*named, "case", "site", "structure", *measures, "failure", "empty"]
    write_csv(path, heads, [[row.get(head) for head in heads] for row in rows])


def write_csv(path: StrPath, heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file, whole or not at all; ``None`` is an empty cell, yes and no are ``true`` and ``false``."""
    with whole_file(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(heads)
        writer.writerows([str(cell).lower() if isinstance(cell, bool) else cell for cell in row] for row in rows)


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
    none_common, penalty = values["dice"] == 0, values["assd_mm"] == PENALTY_MM
    if (none_common and values["assd_mm"] == 0) or (penalty and not none_common):
        fault = f"Dice {values['dice']:g} and ASSD {values['assd_mm']:g} cannot be of the same masks"
        raise InputError(f"{place}: {fault}. Give Dice 0 and ASSD {PENALTY_MM:g} where nothing was found.")
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
