"""The components of a config: whether they exist, and take these arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, get_args, get_origin

from monai.bundle import ConfigComponent
from typing_extensions import is_typeddict

from plugins.config.names import CLOSE, nearest, nodes
from plugins.config.signatures import Methods, argument_names, locate, names_beside, signature
from plugins.config.values import alternatives, is_computed, title, value_fault
from plugins.errors import InputError

Follow = Callable[[str, Any], tuple[str, Any]]
OURS = "plugins."  # whose annotations can be relied on
JSON = (bool, int, float, str, list, dict)
MODES = ("default", "callable", "debug")


def component_fault(node: Mapping[str, Any], name: str = "", follow: Follow = lambda *argument: argument) -> str:
    """What is wrong with a ``_target_`` node, with a cure: empty if nothing is.

    Args:
        node: of a config.
        name: its id.
        follow: takes the id and the value of an argument to those of the value that it refers to.
    """
    target = node["_target_"]
    if not isinstance(target, str):
        return f"{name}: _target_ is {target!r}. Give the name of a class or function."
    if target.startswith(("$", "@", "%")) or node.get("_disabled_") is True:
        return ""
    if node.get("_mode_", "default") not in MODES:
        return f"{name}: _mode_ is {node['_mode_']!r}{nearest(node['_mode_'], MODES)}"
    component = locate(target)
    if component is None:
        return f"{name}: there is no {target}{nearest(target, names_beside(target))}"
    if not callable(component):
        return f"{name}: {target} is no class or function. Name one."
    given = {key: value for key, value in node.items() if key not in ConfigComponent.non_arg_keys}
    names, is_open = argument_names(component)
    known = names - given.keys() if is_open else names
    for key in given if names else ():
        if key not in names and (not is_open or get_close_matches(key, known, n=1, cutoff=CLOSE)):
            return f"{name}: {target} {'knows' if is_open else 'takes'} no {key!r}{nearest(key, known)}"
    try:
        taken = signature(component)
        if node.get("_mode_") != "callable":
            taken.bind(**given)
    except (ValueError, ImportError):  # some built-ins have none
        return ""
    except TypeError as error:
        return f"{name}: {target}: {error}. Give all that it needs."
    values = {}
    for key, value in given.items():
        parameter = taken.parameters.get(key)
        if parameter is not None and parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            place, values[key] = follow(f"{name}::{key}" if name else key, value)
            fault = _argument_fault(values[key], parameter, place, target)
            if fault:
                return fault
    return _fault_of_all(component, taken, values)


def _fault_of_all(component: Callable[..., Any], taken: inspect.Signature, values: Mapping[str, Any]) -> str:
    """What the component itself refuses about its arguments, as far as they are known; see ``refused_by``."""
    check = getattr(component, "__refused_by__", None)
    if check is None:
        return ""
    known = {name: values.get(name, taken.parameters[name].default) for name in inspect.signature(check).parameters}
    if any(is_computed(value) for each in known.values() for _, value in nodes(each)):
        return ""
    try:
        check(**known)
    except InputError as error:
        return str(error)
    return ""


def _argument_fault(value: Any, parameter: inspect.Parameter, place: str, target: str) -> str:
    if value is None and parameter.default is None:
        return ""
    if not ConfigComponent.is_instantiable(value):
        fault = value_fault(value, parameter.annotation, place)
        if fault or is_computed(value) or not target.startswith(OURS):
            return fault
        made: Any = type(value)
    elif not target.startswith(OURS) or value.get("_mode_") == "callable" or not isinstance(value["_target_"], str):
        return ""
    else:
        made = locate(value["_target_"])
    kinds = [each for each in alternatives(parameter.annotation) if each is not type(None)]
    if isinstance(made, type) and kinds and all(lacking(made, each) for each in kinds):
        return f"{place} is {value['_target_']}, which has no {lacking(made, kinds[0])[0]!r}. Give a class that has it."
    plain = all(isinstance(each, type) and get_origin(each) is None and not is_typeddict(each) for each in kinds)
    if isinstance(made, type) and plain and not {Any, *JSON} & {*kinds} and not issubclass(made, tuple(kinds)):
        given = value["_target_"] if isinstance(value, Mapping) and "_target_" in value else repr(value)
        return f"{place} is {given}. Give {title(parameter.annotation)}."
    return ""


def lacking(made: type, hint: Any) -> list[str]:
    """Methods that a hint asks for and that a class does not have."""
    asked = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    methods = [name for each in asked if isinstance(each, Methods) for name in each.names]
    return [name for name in methods if not hasattr(made, name)]
