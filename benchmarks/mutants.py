"""Which faults the tests notice: small faults are put into the code, one at a time, and its tests run.

python -m benchmarks.mutants --output benchmarks/results/mutants.json --per_module 6

A fault is a changed operator, comparison, number or condition. The chosen ones depend on the seed alone. Each is tried
in a copy of the repository. What has a result is not tried again, so the same command continues.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from plugins.files import read_json, write_json

ROOT = Path(__file__).parents[1]
PARTS = ("layers", "losses", "engines")
TESTS = {
    "fast_conv": ["layers/test_fast_conv.py"],
    "region_norm": ["layers/test_region_norm.py"],
    "regions": ["layers/test_region_norm.py"],
    "resample": ["layers/test_resample.py"],
    "contrastive": ["losses/test_contrastive.py", "engines/test_trainers.py"],
    "queries": ["losses/test_contrastive.py"],
    "augmentation": ["engines/test_augmentation.py"],
    "budget": ["engines/test_budget.py"],
    "record": ["engines/test_record.py"],
    "handlers": ["engines/test_helpers.py", "engines/test_trainers.py", "engines/test_finite.py"],
    "scanwise": ["engines/test_helpers.py", "data/test_translation.py"],
    "image_pool": ["engines/test_helpers.py"],
    "schedules": ["engines/test_helpers.py"],
    "translation": ["engines/test_trainers.py", "engines/test_finite.py", "engines/test_distributed.py"],
    "cyclegan": ["engines/test_trainers.py"],
}
"""Module to the tests that should notice its faults."""
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


def is_noticed(copy: Path, tests: list[str]) -> bool:
    """Whether a test fails, or does not end in time."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        result = subprocess.run(command, cwd=copy, env=environment, capture_output=True, timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        return True
    return result.returncode != 0


def main() -> None:
    """Try the faults, and write what was noticed after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--per_module", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    found = read_json(options.output) if options.output.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "copy")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "build", "runs", "*.egg-info"))
        for part in options.parts:
            for module in sorted((copy / "plugins" / part).glob("*.py")):
                original = module.read_text(encoding="utf-8")
                tests = [f"tests/{name}" for name in TESTS.get(module.stem, [])] + [f"plugins/{part}/{module.name}"]
                if module.stem in TESTS and is_noticed(copy, tests):
                    raise SystemExit(f"the tests of {module.name} fail without any fault: mend them first.")
                for line, what, source in chosen(ROOT / module.relative_to(copy), options.per_module, options.seed):
                    name = f"{module.relative_to(copy)}:{line} {what}"
                    if name in found:
                        continue
                    module.write_text(source, encoding="utf-8")
                    found[name] = is_noticed(copy, tests)
                    module.write_text(original, encoding="utf-8")
                    write_json(options.output, found)
                    print(f"{sum(found.values())} of {len(found)} noticed; {name}: {found[name]}", flush=True)


if __name__ == "__main__":
    main()
