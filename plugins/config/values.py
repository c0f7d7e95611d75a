"""Values of a config against the annotations of the arguments they are for, by pydantic."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from monai.bundle import ConfigComponent
from pydantic import BeforeValidator, InstanceOf, Strict, TypeAdapter, ValidationError, WrapValidator
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer
from typing_extensions import TypedDict, is_typeddict

from plugins.config.names import nearest

TITLES: dict[Any, str] = {
    bool: "True or False", int: "a whole number", float: "a number", str: "text", type(None): "null",
    os.PathLike: "a path",
}  # fmt: skip
RANGES = {
    "greater_than": "It must be more than {gt:g}", "greater_than_equal": "It must be {ge:g} or more",
    "less_than": "It must be less than {lt:g}", "less_than_equal": "It must be at most {le:g}",
}  # fmt: skip
# generics whose arguments are known at run time only
_List, _Dict, _Tuple, _Union, _Instance, _Form = (
    cast(Any, each) for each in (list, dict, tuple, Union, InstanceOf, TypedDict)
)
_BUILT = (Tensor, Module, Optimizer)  # what JSON cannot hold
_LISTS = (list, set, frozenset, tuple, Sequence, Iterable, Collection)


def is_computed(value: Any) -> bool:
    """Whether MONAI makes a value of it that nobody knows before: an expression, a reference, a component."""
    return ConfigComponent.is_instantiable(value) or (isinstance(value, str) and value.startswith(("$", "@", "%")))


def value_fault(value: Any, hint: Any, name: str) -> str:
    """What is wrong with a value, with a cure: empty if nothing is.

    Args:
        value: as it stands in a config; what is computed fits.
        hint: annotation. Other classes than those of JSON fit anything.
        name: id of the value.
    """
    if hint is Any or is_computed(value):
        return ""
    try:
        TypeAdapter(_checked(hint)).validate_python(value)
    except ValidationError as error:
        faults = [(_path(value, each), each) for each in error.errors()]
    else:
        return ""
    path = max((path for path, _ in faults), key=len)  # of the alternatives, the one that fits furthest was meant
    here = [each for place, each in faults if place == path]
    first = next(filter(_is_range, here), here[0])
    place, given = "::".join([name, *path]), first["input"]
    if "[key]" in first["loc"]:
        return f"{'::'.join([name, *path[:-1]])} has no {given!r}{_cure(given, here)}"
    if first["type"] == "too_short":
        return f"{place} is empty. Name at least one."
    if _is_range(first):
        return f"{place} is {given!r}. {RANGES[first['type']].format(**first['ctx'])}."
    return f"{place} is {given!r}{_cure(given, here)}"


def title(hint: Any) -> str:
    """What an annotation asks for, in words."""
    return _asked(hint)[1]


def alternatives(hint: Any) -> tuple[Any, ...]:
    """What a union consists of; any other hint itself."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _checked(hint: Any) -> Any:
    """An annotation as pydantic is to check it: what is computed passes, and faults are told in words."""
    kind, words = _asked(hint)
    if kind is Any or len(alternatives(hint)) > 1:  # whose alternatives are checked each
        return kind
    known = get_args(hint) if get_origin(hint) is Literal else ()

    def check(value: Any, handler: Callable[[Any], Any]) -> Any:
        if is_computed(value):
            return value
        try:
            return handler(value)
        except ValidationError as error:
            if any(_path(value, each) or _is_range(each) or "[key]" in each["loc"] for each in error.errors()):
                raise
        raise ValueError(words, known)

    return Annotated[kind, WrapValidator(check)]


def _asked(hint: Any) -> tuple[Any, str]:
    """An annotation for pydantic, and in words; a list counts as any sequence, a whole number as a float."""
    origin, inner = get_origin(hint) or hint, get_args(hint)
    if origin is Annotated:
        kind, words = _asked(inner[0])
        rules = [rule for each in inner[1:] for rule in getattr(each, "metadata", ())]
        counts = "".join(f" of {rule.max_length}" for rule in rules if hasattr(rule, "max_length"))
        return Annotated[(kind, *inner[1:])], words.replace("a list", f"a list{counts}", 1)
    if origin in (Union, UnionType):
        return _Union[tuple(map(_checked, inner))], _either(map(title, inner))
    if origin is Literal:
        return hint, ("one of " if len(inner) > 1 else "") + ", ".join(map(repr, inner))
    if hint in (bool, int, float, str):
        return Annotated[hint, Strict()], TITLES[hint]
    if is_typeddict(hint):
        hints = get_type_hints(hint, include_extras=True)
        keys = TypeAdapter(_Dict[_checked(Literal[tuple(hints)]), Any])
        form = _Form(hint.__name__, {key: _checked(each) for key, each in hints.items()}, total=False)
        return Annotated[form, BeforeValidator(keys.validate_python)], "a dictionary of " + ", ".join(hints)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _Dict[tuple(map(_checked, inner or (Any, Any)))], "a dictionary"
    if origin is tuple and inner and inner[-1] is not ...:
        titles = dict.fromkeys(map(title, inner))
        return _Tuple[tuple(map(_checked, inner))], f"a list of {len(inner)}" + _each(*titles)
    if origin in _LISTS:
        item = inner[0] if inner else Any
        kind = _List[_checked(item)]
        return (kind | Annotated[str, Strict()] if item is str else kind), "a list" + _each(title(item))
    words = TITLES.get(origin) or f"a component of class {getattr(origin, '__name__', origin)}"
    if origin in TITLES or origin is Callable:
        return hint, words
    return _Instance[origin] if isinstance(origin, type) and issubclass(origin, _BUILT) else Any, words


def _is_range(fault: Any) -> bool:
    """Whether a value is of the right kind, but out of range."""
    return fault["type"] in RANGES or (fault["type"] == "too_short" and fault["ctx"]["min_length"] == 1)


def _either(titles: Iterable[str]) -> str:
    known = dict.fromkeys(titles)
    return " or ".join(each for each in known if each != TITLES[str] or TITLES[os.PathLike] not in known)


def _each(*titles: str) -> str:
    return f" ({titles[0]} each)" if len(titles) == 1 and titles[0] != title(Any) else ""


def _path(value: Any, fault: Any) -> list[str]:
    """Where a fault lies in a value; pydantic names the alternatives of a union as well, which are no keys."""
    path = []
    for key in fault["loc"]:
        listed = isinstance(value, (list, tuple)) and isinstance(key, int) and key < len(value)
        if listed or (isinstance(value, Mapping) and key in value):
            value = value[key]
            path.append(str(key))
    return path


def _cure(value: Any, faults: Sequence[Any]) -> str:
    words, known = zip(*(fault["ctx"]["error"].args for fault in faults), strict=True)
    return nearest(value, [each for names in known for each in names], f"Give {_either(words)}")
