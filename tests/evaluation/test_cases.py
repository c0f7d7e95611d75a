"""Tables of per-case values: what is read, and what is refused in one sentence."""

import json

import pytest

from plugins.errors import InputError
from plugins.evaluation import compare_methods, evaluate_cases, evaluate_segmentation
from plugins.evaluation.cases import read_cases, read_methods, write_cases

GOOD = """method,case,site,structure,dice,assd_mm
a,c1,ldn,VS,0.9,0.4
a,c1,ldn,cochlea,0.4,0.6
a,c2,etz,VS,0,350
a,c2,etz,cochlea,0.8,0.2
b,c1,ldn,VS,0.7,0.5
b,c1,ldn,cochlea,0.8,0.3
b,c2,etz,VS,0.6,0.9
b,c2,etz,cochlea,0.7,0.4
"""


def save(tmp_path, text, name="cases.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table_is_evaluated_as_label_maps_are(tmp_path):
    content = evaluate_cases(save(tmp_path, GOOD), tmp_path / "out" / "metrics.json", method="a")
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == content
    vs = content["mean"]["vs"]
    assert (vs["dice"], vs["assd_mm"], vs["plain"]["assd_mm"]) == pytest.approx((0.45, 175.2, 0.4))
    assert content["sites"]["etz"]["cases"] == ["c2"]
    assert [(each["case"], each["structure"]) for each in content["failures"]] == [("c1", "cochlea"), ("c2", "vs")]
    assert evaluate_segmentation(tmp_path / "again.json", cases_file=tmp_path / "out" / "metrics.csv") == content


def test_spellings_of_the_world_are_read(tmp_path):
    """Semicolons, a byte order mark, capitals, spaces, blank lines, other columns, and names that tell the site."""
    rows = ["crossmoda2022_etz_7; Cochlea;1;0;71", "", "crossmoda2022_etz_7;vs;.5;2e1;71"]
    text = "\n".join(["\ufeffCase;Structure ;Dice;ASSD_mm;age", *rows])
    table = read_cases(save(tmp_path, text))
    assert table.sites == {"crossmoda2022_etz_7": "etz"}
    assert table.methods == {
        "": {
            "crossmoda2022_etz_7": {
                "cochlea": {"dice": 1.0, "assd_mm": 0.0, "failure": False},
                "vs": {"dice": 0.5, "assd_mm": 20.0, "failure": False},
            }
        }
    }


def test_what_is_written_is_read_again(tmp_path):
    table = read_cases(save(tmp_path, GOOD))
    table.methods["a"]["c1"]["vs"] = {"dice": None, "assd_mm": None, "failure": False, "empty": "both"}
    write_cases(tmp_path / "again.csv", table.methods, table.sites)
    assert read_cases(tmp_path / "again.csv") == table


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("a,c2,etz,VS,0,350", "a,c1,ldn,vs,0.9,0.4", r"line 4: vs of c1 of a stands in line 2 too"),
        ("0.9,0.4", "nan,0.4", r"line 2: dice is 'nan', not a number from 0 to 1"),
        ("0.9,0.4", "0.9,inf", r"line 2: assd_mm is 'inf', not a number of mm"),
        ("0.9,0.4", "1.2,0.4", r"line 2: dice is '1.2', not a number from 0 to 1"),
        ("0.9,0.4", "0.9,-1", r"line 2: assd_mm is '-1', not a number of mm"),
        ("0.9,0.4", "0.9,much", r"line 2: assd_mm is 'much', not a number of mm"),
        ("0.9,0.4", ",0.4", r"line 2: dice is empty. Give Dice 0 and ASSD 350"),
        ("0.9,0.4", "0.9", r"line 2: has more or fewer cells"),
        ("0.9,0.4", "0.9,0.4,0.1", r"line 2: has more or fewer cells"),
        ("a,c1,ldn,VS", "a,c1,ldn,tumour", r"line 2: structure is 'tumour'. Give vs or cochlea"),
        ("a,c1,ldn,VS", ",c1,ldn,VS", r"line 2: method is empty"),
        ("a,c1,ldn,VS", "a,,ldn,VS", r"line 2: case is empty"),
        ("b,c1,ldn,VS", "b,c1,etz,VS", r"line 6: c1 is of site etz, but of ldn before"),
        ("site,structure,dice", "site,structure,dsc", r"has no column dice"),
        ("method,case,site", "case,case,site", r"has two columns case"),
        ("a,c1,ldn,VS", '"a,c1,ldn,VS', r"is no CSV"),
        ("0.9,0.4", "0,0", r"line 2: Dice 0 and ASSD 0 cannot be of the same masks. Give Dice 0 and ASSD 350"),
        ("0.9,0.4", "0.9,350", r"line 2: Dice 0.9 and ASSD 350 cannot be of the same masks"),
        (GOOD, "", r"has no column case"),
        (GOOD, GOOD.splitlines()[0], r"has no rows"),
    ],
)
def test_faulty_tables_are_refused_by_line(tmp_path, old, new, message):
    assert old in GOOD
    with pytest.raises(InputError, match=rf"cases.csv.*{message}"):
        read_cases(save(tmp_path, GOOD.replace(old, new, 1)))


def test_a_file_that_is_missing_or_no_text_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nothing.csv cannot be read"):
        read_cases(tmp_path / "nothing.csv")
    (tmp_path / "bytes.csv").write_bytes(b"case,structure,dice,assd_mm\n\xff\xfe,vs,1,0\n")
    with pytest.raises(InputError, match=r"bytes.csv cannot be read.*UTF-8"):
        read_cases(tmp_path / "bytes.csv")


def test_the_method_must_be_told_apart(tmp_path):
    path = save(tmp_path, GOOD)
    with pytest.raises(InputError, match=r"has 2 methods. Set method to one of a, b"):
        evaluate_cases(path, tmp_path / "m.json")
    with pytest.raises(InputError, match=r"has no method c. Set method to one of a, b"):
        evaluate_cases(path, tmp_path / "m.json", method="c")
    with pytest.raises(InputError, match="pred_dir and cases_file are not set"):
        evaluate_segmentation(tmp_path / "m.json")


def test_a_folder_and_a_table_are_not_taken_together(tmp_path):
    path = save(tmp_path, GOOD)
    with pytest.raises(InputError, match=r"pred_dir is .* and cases_file is .*\. Give one of them"):
        evaluate_segmentation(tmp_path / "m.json", pred_dir=tmp_path, cases_file=path)
    assert not (tmp_path / "m.json").exists()


def test_an_evaluation_never_replaces_its_own_table(tmp_path):
    path = save(tmp_path, GOOD)
    with pytest.raises(InputError, match=r"would be replaced by the results\. Set another output_dir"):
        evaluate_cases(path, path.with_suffix(".json"), method="a")
    assert path.read_text() == GOOD


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("b,c2,etz,VS,0.6,0.9\n", "no row for vs of c2 of the method b"),
        ("a,c1,ldn,VS,0.9,0.4\na,c1,ldn,cochlea,0.4,0.6\n", "no row for vs of c1 of the method a"),
    ],
)
def test_a_missing_case_is_named_or_counts_as_not_found(tmp_path, line, message):
    path = save(tmp_path, GOOD.replace(line, ""))
    with pytest.raises(InputError, match=message):
        compare_methods(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    content = compare_methods(path, tmp_path / "out", missing="penalise", resamples=99)
    assert len(content["filled_in"]) == line.count("\n")
    method, case, structure = content["filled_in"][0].values()
    failed = [each for each in content["methods"][method]["failures"] if each["case"] == case]
    assert (failed[0]["structure"], failed[0]["dice"], failed[0]["assd_mm"]) == (structure, 0, 350)
    assert content["methods"][method]["mean"]["vs"]["hd95_mm"] is None  # nobody measured it
    assert read_cases(tmp_path / "out/cases.csv").methods.keys() == content["methods"].keys()


def test_a_missing_structure_is_refused_in_an_evaluation_too(tmp_path):
    path = save(tmp_path, GOOD.replace("a,c2,etz,VS,0,350\n", ""))
    with pytest.raises(InputError, match="no row for vs of c2 of the method a"):
        evaluate_cases(path, tmp_path / "m.json", method="a")


def test_metrics_files_and_tables_may_be_mixed(tmp_path):
    evaluate_cases(save(tmp_path, GOOD), tmp_path / "a.json", method="a")
    only_b = "\n".join(line for line in GOOD.splitlines() if line[:2] != "a,")
    table = read_methods({"first": tmp_path / "a.json", "second": save(tmp_path, only_b, "b.csv")})
    whole = read_cases(tmp_path / "cases.csv")
    assert table.methods == {"first": whole.methods["a"], "second": whole.methods["b"]}
    assert table.sites == whole.sites


def test_metrics_files_of_older_versions_are_read(tmp_path):
    row = {"dice": 0.8, "assd_mm": 1.0, "failure": False}
    old = {"cases": {"crossmoda2021_ldn_211": {"vs": row, "cochlea": row}}, "mean": {}, "not_compared": []}
    path = save(tmp_path, json.dumps(old), "metrics.json")
    table = read_methods({"old": path})
    assert table.methods["old"] == old["cases"]
    assert table.sites == {"crossmoda2021_ldn_211": "ldn"}
    with pytest.raises(InputError, match=r"old has no hd95_mm in crossmoda2021_ldn_211\. Evaluate it again"):
        compare_methods({"old": path, "same": path}, tmp_path / "out", measures=["dice", "hd95_mm"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"cases": {}}, "has no cases"),
        ({"mean": {}}, "is damaged"),
        ({"cases": {"c": {"vs": {"dice": 1, "assd_mm": 0, "failure": False}}}}, "case c has no metrics of cochlea"),
        (
            {"cases": {"c": {"vs": {"dice": float("nan"), "assd_mm": 0, "failure": False}}}},
            "dice of vs in c is nan, not a number from 0 to 1",
        ),
    ],
)
def test_faulty_metrics_files_are_refused_by_name(tmp_path, content, message):
    path = save(tmp_path, json.dumps(content), "metrics.json")
    with pytest.raises(InputError, match=rf"metrics.json.*{message}"):
        read_methods({"x": path})


SEEDS = """method,seed,case,site,structure,dice,assd_mm,empty
a,0,c1,ldn,VS,0.9,1,
a,0,c1,ldn,cochlea,0.8,0.5,
a,0,c2,etz,VS,0.7,1,
a,0,c2,etz,cochlea,,,both
a,1,c1,ldn,VS,0,350,
a,1,c1,ldn,cochlea,0.6,0.7,
a,1,c2,etz,VS,0.8,1,
a,1,c2,etz,cochlea,0,350,reference
"""


def test_a_method_with_seeds_has_their_means_and_keeps_their_values(tmp_path):
    table = read_cases(save(tmp_path, SEEDS))
    means = table.methods["a"]
    assert (means["c1"]["vs"]["dice"], means["c1"]["vs"]["assd_mm"]) == pytest.approx((0.45, 175.5))
    assert means["c1"]["vs"]["failure"]
    assert means["c2"]["vs"]["dice"] == pytest.approx(0.75)
    assert means["c2"]["cochlea"]["dice"] == 0  # one seed draws what is not there
    assert table.seeds["a"]["1"]["c1"]["vs"]["assd_mm"] == 350
    write_cases(tmp_path / "again.csv", table.methods, table.sites, table.seeds)
    assert read_cases(tmp_path / "again.csv") == table


def test_rules_and_failures_are_those_of_each_seed_not_of_a_mean_over_seeds(tmp_path):
    rows = SEEDS + "".join(f"b{line[1:]}" for line in SEEDS.splitlines(keepends=True)[1:])
    mean = compare_methods(save(tmp_path, rows), tmp_path / "out", resamples=99)["methods"]["a"]["mean"]["vs"]
    assert (mean["dice"], mean["assd_mm"]) == pytest.approx((0.6, 88.25))
    assert (mean["cases"], mean["failures"], mean["empty"]) == (4, 1, 1)
    assert mean["plain"]["assd_mm"] == 1  # never the mean of a distance and a penalty
    assert mean["without_failures"]["dice"] == pytest.approx(0.8)


def test_an_evaluation_is_of_one_seed(tmp_path):
    with pytest.raises(InputError, match=r"has the seeds 0, 1\. Leave the rows of one seed, or compare methods"):
        evaluate_cases(save(tmp_path, SEEDS), tmp_path / "m.json")
    one = "".join(line for line in SEEDS.splitlines(keepends=True) if not line.startswith("a,1"))
    assert evaluate_cases(save(tmp_path, one), tmp_path / "m.json")["mean"]["vs"]["cases"] == 2


def test_a_seed_in_some_rows_only_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"seed is empty in some rows of a\. Fill it, or empty it in all"):
        read_cases(save(tmp_path, SEEDS.replace("a,1,c1,ldn,VS", "a,,c1,ldn,VS")))


def test_a_seed_without_a_row_that_another_has_is_refused(tmp_path):
    path = save(tmp_path, SEEDS.replace("a,1,c2,etz,VS,0.8,1,\n", ""))
    with pytest.raises(InputError, match=r"no row for vs of c2 of the method a with seed '1'\. Add it, or leave"):
        read_cases(path)
