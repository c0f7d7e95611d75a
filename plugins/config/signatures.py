"""What a class or function takes, as its signature tells it."""

from __future__ import annotations

import inspect
import os
import pydoc
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from monai.bundle import ComponentLocator
from monai.utils import ensure_tuple

from plugins.config.ranges import OF_OTHERS
from plugins.errors import InputError
from plugins.interrupts import check

Class = TypeVar("Class", bound=type)
Component = TypeVar("Component", bound=Callable[..., Any])
_LOCATOR = ComponentLocator()
EXTRAS = {"nnunetv2": "train", "batchgenerators": "train", "batchgeneratorsv2": "train"}
"""Packages that only some bundles need, and the extra that brings them."""
_KEYWORDS = inspect.Parameter.VAR_KEYWORD


@dataclass(frozen=True)
class Methods:
    """What the class of a component must have: ``Annotated[nn.Module, Methods(("encode", "decode"))]``."""

    names: tuple[str, ...]


def locate(target: str) -> Any:
    """The class or function that MONAI finds under a name; ``None`` if there is none.

    Raises:
        InputError: if it needs a package that is not installed, and that an extra of ours brings.
    """
    module, *_ = ensure_tuple(_LOCATOR.get_component_module_name(target))
    try:
        return pydoc.locate(f"{module}.{target}" if module else target)
    except pydoc.ErrorDuringImport as error:
        check()  # it may have been Ctrl-C
        missing = error.value.name if isinstance(error.value, ModuleNotFoundError) else None
        package = (missing or "").partition(".")[0]
        if package in EXTRAS:
            cure = f"Install the extra: pip install 'tanq-bundles[{EXTRAS[package]}]'"
            raise InputError(f"{target} needs {package}, which is not installed. {cure}.") from error
        return None


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Have the modules in a folder found, as ``monai.bundle run`` has those of a bundle; they are forgotten again."""
    before = set(sys.modules)
    sys.path.insert(1, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            here = str(getattr(sys.modules[name], "__file__", "")).startswith(f"{folder}{os.sep}")
            if here and name.split(".")[0] != __package__.split(".")[0]:  # a copy's own code is what is running
                del sys.modules[name]


def names_beside(target: str) -> list[str]:
    """Names that could have been meant: those of the same module, or MONAI's short ones."""
    parent, _, _ = target.rpartition(".")
    module = pydoc.locate(parent) if parent else None
    if module is not None:
        return [f"{parent}.{name}" for name in getattr(module, "__all__", dir(module)) if not name.startswith("_")]
    return list(_LOCATOR._components_table or {})


@cache
def signature(component: Callable[..., Any]) -> inspect.Signature:
    """The signature, with ranges of :data:`OF_OTHERS`, and annotations evaluated; those that cannot be count as none.

    It is read once, so it must not change afterwards.

    Raises:
        ValueError: if there is no signature, as of some built-ins.
    """
    return _with_ranges(component)


def _with_ranges(component: Callable[..., Any]) -> inspect.Signature:
    known = _signature(component)
    parameters = dict(known.parameters)
    is_open = any(each.kind is _KEYWORDS for each in parameters.values())
    for base in getattr(component, "__mro__", ()):
        for name, hint in OF_OTHERS.get(base, {}).items():
            if name in parameters or is_open:
                new = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None)
                parameters[name] = parameters.get(name, new).replace(annotation=hint)
    return known.replace(parameters=sorted(parameters.values(), key=lambda each: each.kind))


def _signature(component: Callable[..., Any]) -> inspect.Signature:
    if isinstance(component, type) and "__init__" in vars(component) and "__signature__" not in vars(component):
        known = _signature(getattr(component, "__init__"))  # noqa: B009 - mypy
        return known.replace(parameters=[*known.parameters.values()][1:])
    try:
        return inspect.signature(component, eval_str=True)
    except (NameError, TypeError, AttributeError, SyntaxError):
        known = inspect.signature(component)
        plain = (
            each.replace(annotation=Any) if isinstance(each.annotation, str) else each
            for each in known.parameters.values()
        )
        return known.replace(parameters=[*plain])


@cache
def argument_names(component: Callable[..., Any]) -> tuple[frozenset[str], bool]:
    """Names of the arguments that a component takes, and whether it may take others.

    Where a constructor hands ``**kwargs`` on, the arguments of its base classes are known as well.
    """
    try:
        known = dict(signature(component).parameters)
    except (ValueError, ImportError):  # an optional package may be missing
        return frozenset(), True
    is_open = any(each.kind is _KEYWORDS for each in known.values())
    if is_open and isinstance(component, type):
        for base in component.__mro__[1:-1]:
            with suppress(ValueError, ImportError):
                known |= signature(getattr(base, "__init__")).parameters  # noqa: B009 - mypy
    names = {name for name, each in known.items() if each.kind not in (_KEYWORDS, inspect.Parameter.VAR_POSITIONAL)}
    return frozenset(names - {"self"}), is_open


def refused_by(check: Callable[..., None]) -> Callable[[Component], Component]:
    """Let the check of a config refuse what a component would refuse when it is built.

    ``check`` takes arguments of the component, by name, and raises an ``InputError`` about them.
    """

    def declare(component: Component) -> Component:
        setattr(component, "__refused_by__", check)  # noqa: B010 - callables have no such attribute
        return component

    return declare


def passes_on(target: Callable[..., Any], but: Collection[str] = ()) -> Callable[[Class], Class]:
    """Have a class's signature say what its constructor's ``**settings`` are: arguments of ``target``.

    Those of ``but`` the constructor gives itself.

    Example:
        >>> def shout(text: str, times: int = 1): ...
        >>> @passes_on(shout)
        ... class Voice:
        ...     def __init__(self, pitch: float, **settings): ...
        >>> list(inspect.signature(Voice).parameters)
        ['pitch', 'text', 'times']
    """

    def declare(cls: Class) -> Class:
        own = [each for each in _with_ranges(cls).parameters.values() if each.kind is not _KEYWORDS]
        names = {*but, *(each.name for each in own)}
        passed = [
            each.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for each in signature(target).parameters.values()
            if each.name not in names and each.kind is not _KEYWORDS
        ]
        setattr(cls, "__signature__", inspect.Signature([*own, *passed]))  # noqa: B010 - types have no such attribute
        return cls

    return declare
