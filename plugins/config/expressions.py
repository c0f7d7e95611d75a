"""Expressions of a config, read but not evaluated."""

from __future__ import annotations

import ast
import builtins
import dis
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import CodeType, ModuleType
from typing import Any

from monai.bundle import ConfigExpression, ConfigParser, ReferenceResolver

from plugins.config.names import nearest, texts
from plugins.errors import InputError

_REFERENCE = "_reference_"


def check_expressions(parser: ConfigParser) -> None:
    """Refuse a syntax error, an unknown name, or one that its module does not have.

    Raises:
        InputError: naming the id of the first faulty expression, with the nearest right name.
    """
    expressions = {path: text for path, text in texts(parser.get()).items() if text.startswith("$")}
    imports = {path: text for path, text in expressions.items() if _is_import(text)}
    bound = [node for text in imports.values() for node in ast.walk(ast.parse(text[1:])) if isinstance(node, ast.alias)]
    known = {**parser.globals, **{node.asname or node.name: None for node in bound}}
    for path, text in expressions.items():
        fault = "" if path in imports else _fault(text, known)
        if fault:
            raise InputError(f"{path} is {text!r}, {fault}")


def _is_import(text: str) -> bool:
    with suppress(SyntaxError):
        return ConfigExpression.is_import_statement(text)
    return False


def _fault(text: str, known: Mapping[str, Any]) -> str:
    """What is wrong with ``$...``, with a cure; ``known`` are modules and other values by their names."""
    source = ReferenceResolver.id_matcher.sub(_REFERENCE, text[1:])
    try:
        tree = ast.parse(source.strip(), mode="eval")
    except SyntaxError as error:
        return f"which is no Python ({error.msg}). Correct it."
    names = {*known, *dir(builtins), _REFERENCE}
    for name in _globals(compile(tree, "config", "eval")):
        if name not in names:
            return f"but there is no {name!r}{nearest(name, names - {_REFERENCE})}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            module = _module(node.value, known)
            if module is not None and not hasattr(module, node.attr):
                return f"but {module.__name__} has no {node.attr!r}{nearest(node.attr, dir(module))}"
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
    if isinstance(node, ast.Attribute):
        found = getattr(_module(node.value, known), node.attr, None)
    else:
        found = known.get(node.id) if isinstance(node, ast.Name) else None
    return found if isinstance(found, ModuleType) else None
