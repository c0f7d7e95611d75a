"""The rules of docs/design.md, "Who may import whom", and a few that no linter knows."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import nullcontext
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "plugins"
MODULES = sorted(PACKAGE.rglob("*.py"))

SMALL = {
    "config",
    "errors",
    "export",
    "files",
    "finite",
    "interrupts",
    "locks",
    "programs",
    "progress",
    "runtime",
    "shared_memory",
    "state",
    "store",
}
MAY_IMPORT = {
    "config": {"errors", "interrupts"},
    "errors": SMALL,
    "export": SMALL | {"segmentation"},
    "files": SMALL,
    "finite": SMALL,
    "interrupts": SMALL,
    "locks": SMALL,
    "programs": SMALL | {"segmentation"},
    "progress": SMALL,
    "runtime": SMALL,
    "shared_memory": SMALL,
    "state": SMALL,
    "store": SMALL,
    "data": SMALL,
    "networks": SMALL,
    "engines": SMALL,
    "segmentation": SMALL | {"data"},
    "nnunet": SMALL | {"data", "segmentation"},
    "evaluation": SMALL | {"data"},
    "report": SMALL | {"data", "evaluation", "segmentation"},
    "workflow": SMALL | {"data", "evaluation", "report", "segmentation"},
}


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE.parent).as_posix()


def part_of(path: Path) -> str:
    """``data`` for ``plugins/data/phantom.py``, ``errors`` for ``plugins/errors.py``, ``""`` for the package itself."""
    first = path.relative_to(PACKAGE).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Every dotted name that a module of ``package`` imports; ``from a import b`` counts as ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def names_in(path: Path) -> set[str]:
    package = ".".join(path.parent.relative_to(PACKAGE.parent).parts)
    return set(imported(ast.parse(path.read_text(encoding="utf-8")), package))


def parts_in(names: set[str]) -> set[str]:
    """The parts of ``plugins`` among imported names; ``plugins.__version__`` belongs to none."""
    ours = {name.split(".")[1] for name in names if name.startswith("plugins.")}
    return ours & (set(MAY_IMPORT) | {part_of(path) for path in MODULES}) - {""}


def uses_environment(tree: ast.AST) -> bool:
    words = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return bool(words & attributes) or any(name.startswith("os.") and name[3:] in words for name in imported(tree, ""))


def unsafe_loads(tree: ast.AST) -> list[int]:
    """Lines with a ``torch.load`` that would unpickle anything."""
    names = {"torch.load"}
    if any(name == "torch.load" for name in imported(tree, "")):
        names.add("load")
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in names
        and not any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
    ]


def test_every_part_has_its_rule():
    assert {part_of(path) for path in MODULES} - {""} <= set(MAY_IMPORT), "add the new part to docs/design.md and here"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_downwards_only(path):
    part = part_of(path)
    allowed = MAY_IMPORT.get(part, set()) | {part}
    assert sorted(parts_in(names_in(path)) - allowed) == [], f"plugins/{part} may import {sorted(allowed)} only"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_torchvision_and_timm_are_not_needed(path):
    assert sorted(name for name in names_in(path) if name.split(".")[0] in {"torchvision", "timm"}) == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_the_training_of_the_segmentation_needs_nnunet(path):
    if part_of(path) != "nnunet":
        packages = {name.split(".")[0] for name in names_in(path)}
        assert sorted(packages & {"nnunetv2", "batchgenerators", "batchgeneratorsv2", "acvl_utils"}) == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_the_environment_is_left_to_nnunet(path):
    if part_of(path) != "nnunet":
        assert not uses_environment(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_checkpoints_are_read_without_running_code(path):
    assert unsafe_loads(ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_the_repository_is_not_reached_into(path):
    """A module that names a file below ``bundles`` or ``tests`` works in a checkout only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert [s for s in strings if s.startswith(("bundles/", "tests/", "../")) or s in {"bundles", "tests"}] == []


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def imports_among(trees: dict[str, ast.AST]) -> dict[str, set[str]]:
    """Which of these modules each of them imports, at its top, in a function or for types only."""
    found = {}
    for module, tree in trees.items():
        names = {name for name in imported(tree, module.rpartition(".")[0])}
        known = {name if name in trees else name.rpartition(".")[0] for name in names}
        found[module] = known & trees.keys() - {module}
    return found


def test_no_module_imports_what_imports_it():
    trees = {module_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}
    TopologicalSorter(imports_among(trees)).prepare()


def work_in_constructors(tree: ast.AST) -> list[str]:
    """What is called in the constructors of a module, but for what only stores and converts."""
    harmless = {"list", "dict", "set", "tuple", "str", "Path", "super", "super().__init__"}
    constructors = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name in {"__init__", "__post_init__", "__new__"}
    ]
    calls = [call for each in constructors for call in ast.walk(each) if isinstance(call, ast.Call)]
    return sorted({ast.unparse(call.func) for call in calls} - harmless)


WORKFLOW = [path for path in MODULES if part_of(path) == "workflow"]


@pytest.mark.parametrize("path", WORKFLOW, ids=name_of)
def test_constructors_of_the_workflow_only_store(path):
    """The work is in ``run()``, or in what a ``with`` enters."""
    assert set(work_in_constructors(ast.parse(path.read_text(encoding="utf-8")))) <= {"ValueError"}


# The checks above would also pass if they saw nothing; here is what they must see.


@pytest.mark.parametrize(
    ("code", "cycle"),
    [
        ("from plugins.b import x", True),
        ("from plugins import b", True),
        ("if TYPE_CHECKING:\n    from plugins.b import x", True),
        ("def f():\n    import plugins.b", True),
        ("import plugins.c", False),
    ],
)
def test_the_check_for_cycles_sees(code, cycle):
    codes = {"plugins.a": code, "plugins.b": "import plugins.a", "plugins.c": ""}
    with pytest.raises(CycleError) if cycle else nullcontext():
        TopologicalSorter(imports_among({name: ast.parse(each) for name, each in codes.items()})).prepare()


def test_the_check_for_work_in_constructors_sees():
    code = (
        "class A:\n    def __init__(self, a):\n        self.a = [*map(open, list(a))]\n    def run(self):\n        go()"
    )
    assert work_in_constructors(ast.parse(code)) == ["map"]


@pytest.mark.parametrize(
    ("package", "code", "parts"),
    [
        ("plugins.networks", "import plugins.data.phantom", {"data"}),
        ("plugins.networks", "from plugins import data, __version__", {"data"}),
        ("plugins.networks", "from plugins.data import phantom", {"data"}),
        ("plugins.networks", "from ..data import phantom", {"data"}),
        ("plugins.networks", "from .. import data", {"data"}),
        ("plugins.networks", "from . import rain", {"networks"}),
        ("plugins", "from .errors import InputError", {"errors"}),
        ("plugins.networks", "def f():\n    from plugins.workflow.stages import Stage", {"workflow"}),
        ("plugins.networks", "import torch\nfrom torch import nn", set()),
    ],
)
def test_the_import_check_sees(package, code, parts):
    assert parts_in(set(imported(ast.parse(code), package))) == parts


@pytest.mark.parametrize("code", ["import os\nos.environ['a']", "from os import getenv", "import os\nos.getenv('a')"])
def test_the_environment_check_sees(code):
    assert uses_environment(ast.parse(code))


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ("torch.load(a)", [1]),
        ("torch.load(a, weights_only=False)", [1]),
        ("from torch import load\nload(a)", [2]),
        ("torch.load(a, weights_only=True)", []),
        ("json.load(a)", []),
    ],
)
def test_the_load_check_sees(code, lines):
    assert unsafe_loads(ast.parse(code)) == lines
