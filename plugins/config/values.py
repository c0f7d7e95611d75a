"""What stands in a config against what reads it: components by signatures, values by annotations and pydantic."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from monai.bundle import ConfigComponent
from pydantic import BeforeValidator, InstanceOf, Strict, TypeAdapter, ValidationError, WrapValidator
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer
from typing_extensions import TypedDict, is_typeddict

from plugins.config.names import CLOSE, is_computed, nearest, nodes
from plugins.config.signatures import Methods, argument_names, locate, names_beside, signature
from plugins.errors import InputError

OURS = "plugins."  # whose annotations can be relied on
JSON = (bool, int, float, str, list, dict)
MODES = ("default", "callable", "debug")
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


def check_component(
    node: Mapping[str, Any], name: str = "", follow: Callable[[str, Any], tuple[str, Any]] = lambda *argument: argument
) -> None:
    """Refuse a ``_target_`` node that cannot be built.

    Args:
        node: of a config.
        name: its id.
        follow: takes the id and the value of an argument to those of the value that it refers to.

    Raises:
        InputError: if there is no such component, or if it does not take these arguments.
    """
    target = node["_target_"]
    if not isinstance(target, str):
        raise InputError(f"{name}: _target_ is {target!r}. Give the name of a class or function.")
    if is_computed(target) or node.get("_disabled_") is True:
        return
    if node.get("_mode_", "default") not in MODES:
        raise InputError(f"{name}: _mode_ is {node['_mode_']!r}{nearest(node['_mode_'], MODES)}")
    component = locate(target)
    if component is None:
        raise InputError(f"{name}: there is no {target}{nearest(target, names_beside(target))}")
    if not callable(component):
        raise InputError(f"{name}: {target} is no class or function. Name one.")
    given = {key: value for key, value in node.items() if key not in ConfigComponent.non_arg_keys}
    names, is_open = argument_names(component)
    known = names - given.keys() if is_open else names
    for key in given if names else ():
        if key not in names and (not is_open or get_close_matches(key, known, n=1, cutoff=CLOSE)):
            raise InputError(f"{name}: {target} {'knows' if is_open else 'takes'} no {key!r}{nearest(key, known)}")
    try:
        taken = signature(component)
        if node.get("_mode_") != "callable":
            taken.bind(**given)
    except (ValueError, ImportError):  # some built-ins have none
        return
    except TypeError as error:
        raise InputError(f"{name}: {target}: {error}. Give all that it needs.") from error
    values = {}
    for key, value in given.items():
        parameter = taken.parameters.get(key)
        if parameter is not None and parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            place, values[key] = follow(f"{name}::{key}" if name else key, value)
            _check_argument(values[key], parameter, place, target)
    check = getattr(component, "__refused_by__", None)
    if check is not None:
        whole = {key: values.get(key, taken.parameters[key].default) for key in inspect.signature(check).parameters}
        if not any(is_computed(value) for _, value in nodes(whole)):
            check(**whole)


def _check_argument(value: Any, parameter: inspect.Parameter, place: str, target: str) -> None:
    if value is None and parameter.default is None:
        return
    is_component = ConfigComponent.is_instantiable(value)
    if not is_component:
        check_value(value, parameter.annotation, place)
    if not target.startswith(OURS) or (is_computed(value) and not is_component):
        return
    if is_component and (value.get("_mode_") == "callable" or not isinstance(value["_target_"], str)):
        return
    made, given = (locate(value["_target_"]), value["_target_"]) if is_component else (type(value), repr(value))
    kinds = [each for each in alternatives(parameter.annotation) if each is not type(None)]
    if not isinstance(made, type) or not kinds:
        return
    lacking = [_lacking(made, each) for each in kinds]
    if all(lacking):
        raise InputError(f"{place} is {given}, which has no {lacking[0][0]!r}. Give a class that has it.")
    plain = all(isinstance(each, type) and get_origin(each) is None and not is_typeddict(each) for each in kinds)
    if plain and not {Any, *JSON} & {*kinds} and not issubclass(made, tuple(kinds)):
        raise InputError(f"{place} is {given}. Give {title(parameter.annotation)}.")


def _lacking(made: type, hint: Any) -> list[str]:
    """Methods that a hint asks for and that a class does not have."""
    asked = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    methods = [name for each in asked if isinstance(each, Methods) for name in each.names]
    return [name for name in methods if not hasattr(made, name)]


def check_value(value: Any, hint: Any, name: str) -> None:
    """Refuse what :func:`value_fault` finds.

    Raises:
        InputError: naming the id.
    """
    fault = value_fault(value, hint, name)
    if fault:
        raise InputError(fault)


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
        _adapter(hint, repr(hint)).validate_python(value)
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


@cache
def _adapter(hint: Any, _: str) -> TypeAdapter[Any]:
    """Made once for each annotation. Unions that differ in order alone are equal, so their text tells them apart."""
    return TypeAdapter(_checked(hint))


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
