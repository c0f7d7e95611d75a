"""Values of a config against the annotations of the arguments they are for."""

from __future__ import annotations

import inspect
import os
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from monai.bundle import ConfigComponent
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from plugins.config.signatures import Length, Methods

TITLES: dict[Any, str] = {
    bool: "True or False", int: "a whole number", float: "a number", str: "text", type(None): "null",
    os.PathLike: "a path",
}  # fmt: skip
_BUILT = (Tensor, Module, Optimizer)  # what JSON cannot hold
_LISTS = (list, set, frozenset, Sequence, Iterable, Collection)


def is_computed(value: Any) -> bool:
    """Whether MONAI makes a value of it that nobody knows before: an expression, a reference, a component."""
    return ConfigComponent.is_instantiable(value) or (isinstance(value, str) and value.startswith(("$", "@", "%")))


def misfit(value: Any, hint: Any, name: str) -> str:
    """What is wrong with a value, with a cure: empty if nothing is.

    Args:
        value: as it stands in a config; what is computed fits.
        hint: annotation. Other classes than those of JSON fit anything.
        name: id of the value.
    """
    if fits(value, hint):
        return ""
    for each in alternatives(hint):
        if get_origin(each) is Annotated and not fits(value, get_args(each)[0]):
            each = get_args(each)[0]
        origin, inner = get_origin(each) or each, get_args(each)
        if isinstance(value, Mapping) and (is_typeddict(each) or (_is_mapping(origin) and inner)):
            hints = get_type_hints(each) if is_typeddict(each) else dict.fromkeys(value, inner[1])
            keys = Literal[tuple(hints)] if is_typeddict(each) else inner[0]
            for key in value:
                if not fits(key, keys):
                    return f"{name} has no {key!r}{_cure(key, keys)}"
            return next(filter(None, (misfit(item, hints[key], f"{name}::{key}") for key, item in value.items())), "")
        if isinstance(value, (list, tuple)) and origin in _LISTS and inner:
            return next(filter(None, (misfit(item, inner[0], f"{name}::{i}") for i, item in enumerate(value))), "")
    return f"{name} is {value!r}{_cure(value, hint)}"


def fits(value: Any, hint: Any) -> bool:
    """Whether a value may be given for a hint; a list counts as any sequence, a whole number as a float."""
    if is_computed(value) or hint in (Any, inspect.Parameter.empty) or isinstance(hint, str):
        return True
    origin, inner = get_origin(hint) or hint, get_args(hint)
    if origin is Annotated:
        counts = [each.count for each in inner[1:] if isinstance(each, Length)]
        return fits(value, inner[0]) and all(len(value) == count for count in counts)
    if origin in (Union, types.UnionType):
        return any(fits(value, each) for each in inner)
    if origin is Literal:
        return any(value == each and type(value) is type(each) for each in inner)
    if hint in (None, type(None)):
        return value is None
    if hint in (bool, int, float, str):
        kinds = (int, float) if hint is float else hint
        return isinstance(value, kinds) and (hint is bool or not isinstance(value, bool))
    if is_typeddict(hint):
        hints = get_type_hints(hint)
        return isinstance(value, Mapping) and all(
            key in hints and fits(item, hints[key]) for key, item in value.items()
        )
    if _is_mapping(origin):
        keys, values = inner or (Any, Any)
        return isinstance(value, Mapping) and all(fits(k, keys) and fits(v, values) for k, v in value.items())
    if origin is tuple and inner and inner[-1] is not ...:
        pairs = zip(value, inner, strict=False) if isinstance(value, (list, tuple)) else ()
        return isinstance(value, (list, tuple)) and len(value) == len(inner) and all(fits(v, h) for v, h in pairs)
    if origin is tuple or origin in _LISTS:
        if isinstance(value, str):
            return inner[:1] == (str,)
        return isinstance(value, (list, tuple)) and all(fits(each, inner[0] if inner else Any) for each in value)
    if origin is os.PathLike:
        return isinstance(value, (str, os.PathLike))
    return not (origin is Callable or (isinstance(origin, type) and issubclass(origin, _BUILT)))


def alternatives(hint: Any) -> tuple[Any, ...]:
    """What a union consists of; any other hint itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def lacking(made: type, hint: Any) -> list[str]:
    """Methods that a hint asks for and that a class does not have."""
    asked = (
        [each.names for each in get_args(hint)[1:] if isinstance(each, Methods)]
        if get_origin(hint) is Annotated
        else []
    )
    return [name for names in asked for name in names if not hasattr(made, name)]


def _is_mapping(origin: Any) -> bool:
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _cure(value: Any, hint: Any) -> str:
    literals = [each for alternative in alternatives(hint) for each in _literals(alternative)]
    near = get_close_matches(str(value), [str(each) for each in literals], n=1, cutoff=0.6)
    return f": did you mean {near[0]!r}?" if near else f": give {title(hint)}."


def _literals(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) is Literal else ()


def title(hint: Any) -> str:
    """What a hint asks for, in words."""
    origin, inner = get_origin(hint) or hint, get_args(hint)
    if origin is Annotated:
        counts = [f" of {each.count}" for each in inner[1:] if isinstance(each, Length)]
        return title(inner[0]).replace("a list", f"a list{''.join(counts)}", 1)
    if origin in (Union, types.UnionType):
        titles = dict.fromkeys(title(each) for each in inner)
        return " or ".join(each for each in titles if not (each == TITLES[str] and TITLES[os.PathLike] in titles))
    if origin is Literal:
        return ("one of " if len(inner) > 1 else "") + ", ".join(map(repr, inner))
    if origin is tuple and inner and inner[-1] is not ...:
        kinds = dict.fromkeys(title(each).removeprefix("a ") for each in inner)
        return f"a list of {len(inner)}" + (f" ({title(inner[0])} each)" if len(kinds) == 1 else "")
    if origin is tuple or origin in _LISTS:
        return "a list" + (f" ({title(inner[0])} each)" if inner and inner[0] is not Any else "")
    if is_typeddict(hint):
        return "a dictionary of " + ", ".join(get_type_hints(hint))
    if _is_mapping(origin):
        return "a dictionary"
    return TITLES.get(origin) or f"a component of class {getattr(origin, '__name__', origin)}"
