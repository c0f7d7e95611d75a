"""Which faults the tests notice: small faults are put into the code, one at a time, and its tests run.

python -m benchmarks.mutants --output benchmarks/results/mutants.json --per_module 6

A fault is a changed operator, comparison, number or condition. The chosen ones depend on the seed alone. Each is tried
in a copy of the repository, by a process that is forked with the libraries loaded (so not on Windows). What has a
result is not tried again, so the same command continues. Changed tests want another file.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PARTS = ("networks", "engines")
TESTS = {
    "networks/codes": ["networks/test_codes.py", "engines/test_codes.py"],
    "networks/fast_conv": ["networks/test_fast_conv.py"],
    "networks/region_norm": ["networks/test_region_norm.py"],
    "networks/regions": ["networks/test_region_norm.py"],
    "networks/resample": ["networks/test_resample.py"],
    "networks/contrastive": ["networks/test_contrastive.py"],
    "networks/queries": ["networks/test_contrastive.py"],
    "engines/augmentation": ["engines/test_augmentation.py"],
    "engines/budget": ["engines/test_budget.py"],
    "engines/contrastive": ["engines/test_trainers.py"],
    "engines/cyclegan": ["engines/test_trainers.py"],
    "engines/handlers": ["engines/test_handlers.py", "engines/test_helpers.py", "engines/test_budget.py"],
    "engines/image_pool": ["engines/test_helpers.py"],
    "engines/record": ["engines/test_handlers.py", "engines/test_record.py"],
    "engines/scanwise": ["engines/test_handlers.py"],
    "engines/schedules": ["engines/test_helpers.py"],
    "engines/translation": ["engines/test_trainers.py"],
}
"""Module to the tests that should notice its faults."""
LEFT_OUT = [
    "networks/test_contrastive.py::TestAttentionQueries::test_rows_and_loss_are_those_of_the_naive_form[128]",
    "networks/test_region_norm.py::test_large_feature_maps_lose_no_digits_in_an_exported_network",
    "networks/test_region_norm.py::test_compiled_equals_eager_forward_and_backward",
    "engines/test_trainers.py::test_a_training_killed_at_any_step_ends_with_the_same_weights",
    "engines/test_trainers.py::test_a_killed_training_continues_its_moving_average",
    "engines/test_trainers.py::test_a_finished_training_is_not_repeated",
    "engines/test_trainers.py::test_a_longer_training_is_not_taken_for_a_shorter_one",
    "engines/test_trainers.py::test_checkpoint_loads_as_plain_tensors",
    "engines/test_trainers.py::test_a_broken_checkpoint_is_refused_by_name",
    "engines/test_trainers.py::test_another_file_in_place_of_a_checkpoint_is_refused_by_name",
    "engines/test_trainers.py::test_a_checkpoint_of_other_networks_is_refused_by_name",
    "engines/test_trainers.py::test_the_moving_average_warms_up",
    "engines/test_trainers.py::test_with_amp_the_networks_compute_in_bfloat16_and_without_in_float32",
    "engines/test_trainers.py::test_tanq_trains_on",
]
"""Tests that take too long to be run for each fault."""
LOADED = [
    "torch",
    "monai.engines",
    "monai.losses",
    "monai.networks.nets",
    "ignite.distributed",
    "onnxruntime",
    "pytest",
]
ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult}
COMPARISON = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
LIMIT_SECONDS = 300


def faults(tree: ast.Module) -> Iterator[tuple[int, str, ast.Module]]:
    """Line, description and changed tree of each fault; annotations and docstrings stay."""
    for node in list(ast.walk(tree)):
        if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
            before = node.op
            node.op = ARITHMETIC[type(before)]()
            yield node.lineno, f"{type(before).__name__} -> {type(node.op).__name__}", tree
            node.op = before
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISON:
            comparison = node.ops[0]
            node.ops[0] = COMPARISON[type(comparison)]()
            yield node.lineno, f"{type(comparison).__name__} -> {type(node.ops[0]).__name__}", tree
            node.ops[0] = comparison
        elif isinstance(node, ast.BoolOp):
            kind = node.op
            node.op = ast.Or() if isinstance(kind, ast.And) else ast.And()
            yield node.lineno, f"{type(kind).__name__} -> {type(node.op).__name__}", tree
            node.op = kind
        elif isinstance(node, (ast.If, ast.IfExp)):
            test = node.test
            node.test = ast.UnaryOp(ast.Not(), test)
            yield node.lineno, "condition turned round", ast.fix_missing_locations(tree)
            node.test = test
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
            value = node.value
            node.value = not value if isinstance(value, bool) else value + 1
            yield node.lineno, f"{value} -> {node.value}", tree
            node.value = value


def chosen(module: Path, count: int, seed: int) -> list[tuple[int, str, str]]:
    """Line, description and changed source of ``count`` faults of a module."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    for node in ast.walk(tree):  # annotations say nothing at run time
        if isinstance(node, ast.arg):
            node.annotation = None
    known = [(line, what, ast.unparse(changed)) for line, what, changed in faults(tree)]
    return sorted(random.Random(f"{seed} {module.name}").sample(known, min(count, len(known))))


def run_tests(copy: Path, tests: list[str]) -> None:
    """Run tests on the copy in this process, and end it with pytest's exit code."""
    os.chdir(copy)
    os.environ["PYTHONPATH"] = str(copy)
    sys.path.insert(0, str(copy))
    sys.dont_write_bytecode = True
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1), os.dup2(silence, 2)
    left_out = [f"--deselect=tests/{name}" for name in LEFT_OUT]
    import pytest

    os._exit(int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *left_out, *tests])))


def is_noticed(copy: Path, tests: list[str]) -> bool:
    """Whether a test fails, or does not end in time."""
    process = multiprocessing.get_context("fork").Process(target=run_tests, args=(copy, tests))
    process.start()
    process.join(LIMIT_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode != 0


def main() -> None:
    """Try the faults, and write what was noticed after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--per_module", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    found = json.loads(options.output.read_text(encoding="utf-8")) if options.output.is_file() else {}
    os.environ["OMP_NUM_THREADS"] = "1"  # a fork has no other threads
    for name in LOADED:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "copy")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "build", "runs", "*.egg-info"))
        for part in options.parts:
            for module in sorted((copy / "plugins" / part).glob("*.py")):
                original = module.read_text(encoding="utf-8")
                kind = f"{part}/{module.stem}"
                if kind not in TESTS:
                    continue
                tests = [f"tests/{name}" for name in TESTS[kind]] + [f"plugins/{kind}.py"]
                faulty = {
                    f"plugins/{kind}.py:{line} {what}": source
                    for line, what, source in chosen(ROOT / "plugins" / f"{kind}.py", options.per_module, options.seed)
                }
                untried = {name: source for name, source in faulty.items() if name not in found}
                if untried and is_noticed(copy, tests):
                    raise SystemExit(f"the tests of {kind}.py fail without any fault: mend them first.")
                for name, source in untried.items():
                    module.write_text(source, encoding="utf-8")
                    start = time.monotonic()
                    found[name] = is_noticed(copy, tests)
                    module.write_text(original, encoding="utf-8")
                    options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
                    seconds = time.monotonic() - start
                    print(f"{sum(found.values())} of {len(found)}; {name}: {found[name]}, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
