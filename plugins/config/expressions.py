"""Expressions of a config, read but not evaluated."""

from __future__ import annotations

import ast
import builtins
import dis
from collections.abc import Iterable, Iterator, Mapping
from types import CodeType, ModuleType
from typing import Any

from monai.bundle import ConfigExpression, ReferenceResolver

from plugins.config.names import nearest

_REFERENCE = "_reference_"


def imported_names(texts: Iterable[str]) -> set[str]:
    """Names that the import statements among expressions bind."""
    trees = [ast.parse(text[1:]) for text in texts if is_import(text)]
    return {node.asname or node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.alias)}


def is_import(text: str) -> bool:
    """Whether an expression is an import statement."""
    try:
        return ConfigExpression.is_import_statement(text)
    except SyntaxError:
        return False


def expression_fault(text: str, known: Mapping[str, Any]) -> str:
    """What is wrong with ``$...``, with a cure: a syntax error, an unknown name, or one that its module does not have.

    Args:
        text: the expression.
        known: names to modules or other values.
    """
    source = ReferenceResolver.id_matcher.sub(_REFERENCE, text[1:])
    try:
        tree = ast.parse(source.strip(), mode="eval")
    except SyntaxError as error:
        return f"is {text!r}, which is no Python ({error.msg}). Correct it."
    names = {*known, *dir(builtins), _REFERENCE}
    for name in _globals(compile(tree, "config", "eval")):
        if name not in names:
            return f"is {text!r}, but there is no {name!r}{nearest(name, names - {_REFERENCE})}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            module = _module(node.value, known)
            if module is not None and not hasattr(module, node.attr):
                near = nearest(node.attr, dir(module))
                return f"is {text!r}, but {module.__name__} has no {node.attr!r}{near}"
    return ""


def _globals(code: CodeType) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_NAME", "LOAD_GLOBAL"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _globals(constant)


def _module(node: ast.AST, known: Mapping[str, Any]) -> ModuleType | None:
    """The module that ``a.b.c`` names, if it names one."""
    if isinstance(node, ast.Name):
        found = known.get(node.id)
    elif isinstance(node, ast.Attribute):
        found = getattr(_module(node.value, known), node.attr, None)
    else:
        return None
    return found if isinstance(found, ModuleType) else None
