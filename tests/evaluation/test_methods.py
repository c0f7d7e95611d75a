"""Twelve methods on forty cases against plain code; ranks by hand; the tables."""

import csv
import itertools
import json

import numpy as np
import pytest

from plugins.errors import InputError
from plugins.evaluation import compare_methods, places_of, ranks_of_cases, show_comparison
from plugins.evaluation.tables import latex_table, markdown_table, table_cells

from .test_statistics import bca, power, signed_rank_test, t_test

RESAMPLES = 999
COLUMNS = list(itertools.product(("vs", "cochlea"), ("dice", "assd_mm")))


def write_challenge(path, methods=12, cases=40, seed=1):
    """A made-up challenge: methods of falling quality, some structures not found, values that tie."""
    rng = np.random.default_rng(seed)
    hardness = rng.normal(0, 0.05, (cases, 2))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "case", "site", "structure", "dice", "assd_mm"])
        for m, c, s in itertools.product(range(methods), range(cases), range(2)):
            dice = np.clip(0.88 - 0.015 * m - hardness[c, s] + rng.normal(0, 0.05), 0.01, 0.99).round(2)
            assd = ((1 - dice) * 3 + rng.uniform(0, 0.2)).round(3)
            if rng.random() < 0.005 * m:
                dice, assd = 0, 350
            writer.writerow(
                [f"team{m + 1:02}", f"case{c + 1:03}", ("ldn", "etz")[c % 2], ("VS", "cochlea")[s], dice, assd]
            )


def columns_of(path):
    """Structure and measure to an array (methods, cases), by plain reading."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    methods, cases = (list(dict.fromkeys(row[key] for row in rows)) for key in ("method", "case"))
    arrays = {column: np.full((len(methods), len(cases)), np.nan) for column in COLUMNS}
    for row in rows:
        for measure in ("dice", "assd_mm"):
            place = methods.index(row["method"]), cases.index(row["case"])
            arrays[row["structure"].lower(), measure][place] = float(row[measure])
    sites = {row["case"]: row["site"] for row in rows}
    return methods, arrays, np.array([sites[case] for case in cases])


def naive_ranks(arrays):
    """Count for each value how many are better, and half of those that are as good."""
    first = next(iter(arrays.values()))
    total = np.zeros(first.shape)
    for (_, measure), array in arrays.items():
        for m, c in np.ndindex(*array.shape):
            better = array[:, c] > array[m, c] if measure == "dice" else array[:, c] < array[m, c]
            total[m, c] += 1 + better.sum() + ((array[:, c] == array[m, c]).sum() - 1) / 2
    return total / len(arrays)


def naive_holm(p_values):
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    return {
        place: min(1, max((len(order) - j) * p_values[order[j]] for j in range(rank + 1)))
        for rank, place in enumerate(order)
    }


def check_against_plain_code(path, folder):
    """Every mean, rank, p-value and interval of a comparison of all pairs."""
    methods, arrays, sites = columns_of(path)
    content = compare_methods(path, folder, resamples=RESAMPLES, seed=3)

    ranks = naive_ranks(arrays)
    assert {entry["method"]: entry["rank"] for entry in content["ranks"]} == pytest.approx(
        dict(zip(methods, ranks.mean(axis=1), strict=True))
    )
    assert [entry["rank"] for entry in content["ranks"]] == sorted(entry["rank"] for entry in content["ranks"])
    for entry in content["ranks"]:
        assert entry["interval"] == pytest.approx(bca(ranks[methods.index(entry["method"])], RESAMPLES, 3))

    for number, method in enumerate(methods):
        for structure, measure in COLUMNS:
            about, values = content["methods"][method], arrays[structure, measure][number]
            mean = about["mean"][structure]
            assert mean[measure] == pytest.approx(values.sum() / values.size)
            assert mean[f"{measure}_std"] == pytest.approx(
                np.sqrt(((values - values.mean()) ** 2).sum() / (values.size - 1))
            )
            for site in set(sites):
                assert about["sites"][site]["mean"][structure][measure] == pytest.approx(values[sites == site].mean())
            found = arrays[structure, "assd_mm"][number] != 350
            plain = values[found] if measure == "assd_mm" else values
            assert mean["plain"][measure] == pytest.approx(plain.mean())
            good = arrays[structure, "dice"][number] >= 0.5
            assert mean["without_failures"][measure] == pytest.approx(values[good].mean())
            assert mean["failures"] == (~good).sum()

    pairs = list(itertools.combinations(range(len(methods)), 2))
    assert len(content["pairs"]) == len(pairs) * len(COLUMNS)
    by_column = {
        column: [e for e in content["pairs"] if (e["structure"], e["measure"]) == column] for column in COLUMNS
    }
    for column, entries in by_column.items():
        expected = {"p": [], "p_wilcoxon": []}
        for (a, b), entry in zip(pairs, entries, strict=True):
            assert (entry["method"], entry["against"], entry["n"]) == (methods[a], methods[b], len(sites))
            differences = arrays[column][a] - arrays[column][b]
            t, p = t_test(differences)
            w, p_ranks = signed_rank_test(differences)
            assert entry["difference"] == pytest.approx(differences.mean())
            assert (entry["t"], entry["p"]) == pytest.approx((t, p))
            assert (entry["w"], entry["p_wilcoxon"]) == pytest.approx((w, p_ranks))
            assert entry["interval"] == pytest.approx(bca(differences, RESAMPLES, 3))
            assert power(entry["smallest_difference"] / differences.std(ddof=1), len(sites)) == pytest.approx(
                0.8, abs=1e-6
            )
            expected["p"].append(p)
            expected["p_wilcoxon"].append(p_ranks)
        for name, values in expected.items():
            corrected = naive_holm(values)
            assert [e[f"{name}_holm"] for e in entries] == pytest.approx([corrected[k] for k in range(len(entries))])
    return content


def test_twelve_methods_on_forty_cases_equal_plain_code(tmp_path):
    write_challenge(tmp_path / "cases.csv")
    content = check_against_plain_code(tmp_path / "cases.csv", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "comparison.json").read_text(), parse_constant=pytest.fail) == content


def test_ranks_by_hand():
    """Two of three methods found nothing: they share ranks 2 and 3."""
    dice, assd = np.array([[0.9], [0.0], [0.0]]), np.array([[0.5], [350.0], [350.0]])
    assert ranks_of_cases({("vs", "dice"): dice, ("vs", "assd_mm"): assd})[:, 0].tolist() == [1, 2.5, 2.5]


def test_ranks_of_a_measure_that_is_undefined_do_not_count():
    values = {
        ("vs", "dice"): np.array([[0.9, np.nan], [0.8, np.nan]]),
        ("cochlea", "dice"): np.array([[0.1, np.nan], [0.2, np.nan]]),
        ("vs", "assd_mm"): np.array([[1.0, np.nan], [2.0, np.nan]]),
    }
    ranks = ranks_of_cases(values)
    assert ranks[:, 0] == pytest.approx([4 / 3, 5 / 3])
    assert np.isnan(ranks[:, 1]).all()


def test_ranks_do_not_depend_on_the_order_of_methods_or_on_the_unit():
    rng = np.random.default_rng(0)
    values = {("vs", "dice"): rng.random((5, 7)), ("vs", "assd_mm"): rng.random((5, 7))}
    order = rng.permutation(5)
    expected = ranks_of_cases(values)[order]
    assert ranks_of_cases({key: table[order] for key, table in values.items()}) == pytest.approx(expected)
    squared = {key: table**2 for key, table in values.items()}
    assert ranks_of_cases(squared) == pytest.approx(ranks_of_cases(values))
    assert ranks_of_cases(values).mean() == pytest.approx(3)


def test_equal_scores_share_the_better_place():
    assert places_of(np.array([1.5, 0.1 + 0.2, 0.3])) == [3, 1, 1]


TWO = """method,case,structure,dice,assd_mm
ours,1,vs,0.9,0.4
ours,1,cochlea,0.8,0.2
ours,2,vs,0.7,0.6
ours,2,cochlea,0.8,0.2
a_b&c|*,1,vs,0.5,1.4
a_b&c|*,1,cochlea,0.8,0.2
a_b&c|*,2,vs,0.3000001,1.6
a_b&c|*,2,cochlea,0.8,0.2
"""


@pytest.fixture
def two(tmp_path):
    (tmp_path / "two.csv").write_text(TWO)
    return tmp_path / "two.csv"


def test_the_table_has_the_shape_of_the_papers(two, tmp_path):
    content = compare_methods(two, tmp_path / "out", reference="ours", resamples=99)
    heads, rows = table_cells(content)
    assert heads == ["Method", "Dice VS", "Dice cochlea", "Dice mean", "ASSD [mm] VS", "ASSD [mm] cochlea"]
    assert rows[0] == [
        "ours",
        "0.8000 (±0.1414)",
        "0.8000 (±0.0000)",
        "0.8000 (±0.0707)",
        "0.5000 (±0.1414)",
        "0.2000 (±0.0000)",
    ]
    assert rows[1][1] == "0.4000 (±0.1414)**"  # differences of 0.4 and 0.3999999
    assert rows[1][2] == "0.8000 (±0.0000)"  # no difference, no test
    with (tmp_path / "out" / "table.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [heads, *rows]


def test_names_are_text_in_markdown_and_latex(two, tmp_path):
    content = compare_methods(two, tmp_path / "out", reference="ours", resamples=99)
    markdown = (tmp_path / "out" / "table.md").read_text()
    assert markdown == markdown_table(content)
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert [line.replace("\\|", "").count("|") for line in lines] == [7] * 4
    assert r"a\_b&c\|\*" in lines[3]
    latex = (tmp_path / "out" / "table.tex").read_text()
    assert latex == latex_table(content)
    assert r"a\_b\&c|*" in latex
    assert r"\multicolumn{3}{c}{Dice ($\uparrow$)} & \multicolumn{2}{c}{ASSD [mm] ($\downarrow$)}" in latex
    body = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert [line.replace(r"\&", "").count("&") for line in body] == [2, 5, 5, 5]
    assert "Paired t-test against ours" in latex


def test_without_a_reference_nothing_is_starred(two, tmp_path):
    content = compare_methods(two, tmp_path / "out", resamples=99)
    assert "**" not in "".join(cell for row in table_cells(content)[1] for cell in row[1:])
    assert "t-test" not in markdown_table(content)


def test_data_files_hold_what_the_comparison_does(two, tmp_path):
    content = compare_methods(two, tmp_path / "out", reference="ours", resamples=99)

    def rows(name):
        with (tmp_path / "out" / name).open(newline="") as file:
            return list(csv.DictReader(file))

    assert [float(row["difference"]) for row in rows("pairs.csv")] == [pair["difference"] for pair in content["pairs"]]
    assert [float(row["rank"]) for row in rows("ranks.csv")] == [1.25, 1.25, 1.75, 1.75]
    plain = {
        (row["method"], row["structure"], row["measure"]): float(row["mean"])
        for row in rows("means.csv")
        if row["site"] == "all" and row["rule"] == "plain"
    }
    assert plain["ours", "vs", "assd_mm"] == pytest.approx(0.5)
    assert len(rows("cases.csv")) == 8
    assert (
        compare_methods(tmp_path / "out" / "cases.csv", tmp_path / "again", reference="ours", resamples=99) == content
    )


def test_one_case_has_ranks_but_no_tests(tmp_path):
    path = tmp_path / "one.csv"
    path.write_text("".join(line for line in TWO.splitlines(keepends=True) if ",2," not in line))
    content = compare_methods(path, tmp_path / "out")
    assert [entry["rank"] for entry in content["ranks"]] == [1.25, 1.75]
    assert {entry["interval"] is None for entry in content["ranks"]} == {True}
    assert {(pair["n"], pair["t"], pair["p"], pair["p_holm"]) for pair in content["pairs"]} == {(1, None, None, None)}
    assert table_cells(content)[1][0][1] == "0.9000"


def test_a_misspelt_way_with_missing_rows_is_refused(two, tmp_path):
    with pytest.raises(InputError, match=r"missing is 'refuze'\. Give refuse or penalise"):
        compare_methods(two, tmp_path / "out", missing="refuze")


def test_methods_that_are_all_equal_share_the_first_place(tmp_path):
    path = tmp_path / "same.csv"
    rows = [f"{m},{c},{s},0.8,0.5" for m in "abc" for c in range(6) for s in ("vs", "cochlea")]
    path.write_text("\n".join(["method,case,structure,dice,assd_mm", *rows]))
    content = compare_methods(path, tmp_path / "out")
    assert [(entry["place"], entry["rank"], entry["interval"]) for entry in content["ranks"]] == [(1, 2, [2, 2])] * 3
    assert {(pair["difference"], pair["p"], pair["p_wilcoxon"]) for pair in content["pairs"]} == {(0, None, None)}


def test_a_structure_that_was_not_there_is_left_out_everywhere_and_named(tmp_path):
    rows = TWO.replace("assd_mm\n", "assd_mm,empty\n").replace("ours,1,cochlea,0.8,0.2", "ours,1,cochlea,,,both")
    lines = [line + ("," if line.count(",") == 4 else "") for line in rows.splitlines()]
    (tmp_path / "cases.csv").write_text("\n".join(lines))
    content = compare_methods(tmp_path / "cases.csv", tmp_path / "out", resamples=99)
    assert content["left_out"] == [{"case": "1", "structure": "cochlea"}]
    assert {pair["n"] for pair in content["pairs"] if pair["structure"] == "cochlea"} == {1}
    assert {pair["n"] for pair in content["pairs"] if pair["structure"] == "vs"} == {2}
    assert "what a method and the reference both lack: cochlea of 1." in (tmp_path / "out/table.md").read_text()
    for row in content["intervals"]:  # of each method alone, as its mean in the table is
        summary = content["methods"][row["method"]]["mean"][row["structure"]]
        assert (row["n"], row["mean"]) == (summary["cases"], pytest.approx(summary[row["measure"]]))
    assert len({row["n"] for row in content["intervals"]}) == 2


def test_a_comparison_says_its_ranks_and_where_they_are(two, tmp_path, capsys):
    show_comparison(compare_methods(two, tmp_path / "out", resamples=99), "out")
    said = capsys.readouterr().out
    assert "1.25" in said
    assert "a_b&c|*" in said
    assert "comparison: out" in said


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reference": "theirs"}, "reference is 'theirs', which is no method"),
        ({"reference": {"ours": "theirs"}}, "reference is 'theirs', which is no method"),
        ({"reference": {"ours": "ours"}}, "reference tests no method against another"),
        ({"measures": ["dicee"]}, "measures holds 'dicee'"),
        ({"measures": ["dice", "dice"]}, "measures holds 'dice' twice"),
        ({"measures": ["dice", "nsd_1mm"]}, "ours has no nsd_1mm in 1"),
        ({"methods": None}, "methods is not set"),
    ],
)
def test_settings_that_cannot_be_are_refused(two, tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        compare_methods(**{"methods": two, "output_dir": tmp_path / "out", **settings})
    assert not (tmp_path / "out").exists()


def test_a_comparison_never_replaces_what_it_compares(two, tmp_path):
    compare_methods(two, tmp_path / "out", resamples=99)
    for name in [file.name for file in (tmp_path / "out").iterdir()]:
        table = two.rename(tmp_path / name)
        for methods in (table, {"ours": table, "theirs": table}):
            with pytest.raises(InputError, match=f"{name} would be replaced by the results"):
                compare_methods(methods, tmp_path)
        assert table.read_text() == TWO
        two = table


def test_one_method_alone_is_not_compared(two, tmp_path):
    two.write_text("".join(line for line in TWO.splitlines(keepends=True) if not line.startswith("a_b")))
    with pytest.raises(InputError, match="methods holds ours alone"):
        compare_methods(two, tmp_path / "out")


def test_each_method_may_have_a_reference_of_its_own(tmp_path):
    path = tmp_path / "cases.csv"
    write_challenge(path, methods=4)
    reference = {"team01": "team01", "team02": "team01", "team03": "team04"}
    content = compare_methods(path, tmp_path / "out", reference=reference, resamples=99)
    assert {(pair["method"], pair["against"]) for pair in content["pairs"]} == {
        ("team01", "team02"),
        ("team04", "team03"),
    }
    assert "Paired t-test against team01 or team04" in markdown_table(content)
    single = compare_methods(path, tmp_path / "single", reference="team01", resamples=99)
    both = [next(p for p in each["pairs"] if p["against"] == "team02") for each in (content, single)]
    assert both[0]["p"] == both[1]["p"]


def test_a_case_counts_once_in_tests_however_many_seeds_it_has(tmp_path):
    path = tmp_path / "cases.csv"
    rng = np.random.default_rng(3)
    dice = rng.uniform(0.3, 0.9, (2, 3, 6, 2)).round(3)  # method, seed, case, structure
    dice[0, 1, 2, 0] = 0
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "seed", "case", "structure", "dice", "assd_mm"])
        for (m, s, c, k), value in np.ndenumerate(dice):
            writer.writerow(["ab"[m], s, f"case{c}", ("vs", "cochlea")[k], value, 350 if value == 0 else 1 + m])
    content = compare_methods(path, tmp_path / "out", reference="a", resamples=99)
    pair = content["pairs"][0]
    means = dice.mean(axis=1)[..., 0]
    assert (pair["n"], pair["p"]) == (6, pytest.approx(t_test(means[0] - means[1])[1]))
    assert content["seeds"] == {"a": ["0", "1", "2"], "b": ["0", "1", "2"]}
    found = content["methods"]["a"]["mean"]["vs"]
    assert (found["cases"], found["failures"]) == (18, (dice[0, ..., 0] < 0.5).sum())
    assert found["plain"]["assd_mm"] == 1
    assert found["dice"] == pytest.approx(content["intervals"][0]["mean"])
    assert "over cases and seeds" in markdown_table(content)
    again = compare_methods(tmp_path / "out" / "cases.csv", tmp_path / "again", reference="a", resamples=99)
    assert again == content
