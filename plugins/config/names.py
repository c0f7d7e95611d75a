"""Names and ids of a config: which there are, what refers to them, and the right ones nearest to misspelt ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from difflib import get_close_matches
from typing import Any

from monai.bundle import ConfigComponent, ConfigParser, ReferenceResolver

from plugins.config.signatures import argument_names, locate
from plugins.errors import InputError

# sections that any config may have
SECTIONS = frozenset(("_meta_", "imports", "initialize", "run", "finalize"))
OF_COMPONENTS = frozenset(ConfigComponent.non_arg_keys)
CLOSE = 0.85  # what is as close as this to a known name was meant to be it


def nearest(
    name: Any, known: Iterable[Any], otherwise: str = "Take the name from its documentation", cutoff: float = 0.6
) -> str:
    """The end of a message: the known name that a misspelt one was meant to be, or what to do otherwise."""
    near = get_close_matches(str(name), [str(each) for each in known], n=1, cutoff=cutoff)
    return f". Did you mean {near[0]!r}?" if near else f". {otherwise}."


def as_id(name: str) -> str:
    """An id as MONAI holds it; ``#`` separates as well, and a leading ``+`` is for the merging of files."""
    return name.lstrip("+").replace("#", "::")


def is_computed(value: Any) -> bool:
    """Whether MONAI makes a value of it that nobody knows before: an expression, a reference, a component."""
    return ConfigComponent.is_instantiable(value) or (isinstance(value, str) and value.startswith(("$", "@", "%")))


def nodes(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in a config, with its id."""
    yield path, config
    if isinstance(config, (Mapping, list)):
        for key, value in config.items() if isinstance(config, Mapping) else enumerate(config):
            yield from nodes(value, f"{path}::{key}" if path else str(key))


def plain(
    value: Any, instead: Callable[[Any], Any], counts: Callable[[str], bool] = lambda _: True, path: str = ""
) -> Any:
    """A part of a config without the ids that do not count, and with something else ``instead`` of Python's objects."""
    if isinstance(value, Mapping):
        kept = {key: each for key, each in value.items() if counts(f"{path}::{key}")}
        return {key: plain(each, instead, counts, f"{path}::{key}") for key, each in kept.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each, instead, counts, f"{path}::{index}") for index, each in enumerate(value)]
    return value if value is None or isinstance(value, (str, int, float)) else instead(value)


def texts(config: Any) -> dict[str, str]:
    """Every text in a config, by its id."""
    return {path: value for path, value in nodes(config) if isinstance(value, str)}


def references(parser: ConfigParser, path: str, text: Any) -> list[str]:
    """The ids that a text in a config refers to, relative ones made absolute; any other value refers to nothing."""
    if not isinstance(text, str) or not is_computed(text):
        return []
    absolute = parser.resolve_relative_ids(path, text)
    wanted = [*ReferenceResolver.match_refs_pattern(absolute)]
    if absolute.startswith("%") and ".json" not in absolute:
        wanted.append(ReferenceResolver.normalize_id(absolute[1:]))
    return wanted


def all_references(config: Mapping[str, Any]) -> set[str]:
    """The ids that anything in a config refers to."""
    parser = ConfigParser(dict(config))
    return {each for path, text in texts(config).items() for each in references(parser, path, text)}


def refuse_unknown(names: Iterable[str], known: Iterable[str], what: str) -> None:
    """Refuse names that are not among the known ones.

    Raises:
        InputError: naming the first unknown name and the nearest known one.

    Example:
        >>> refuse_unknown(["tanc"], ["tanq", "cyclegan"], what="views")
        Traceback (most recent call last):
        plugins.errors.InputError: views has no 'tanc'. Did you mean 'tanq'?
    """
    known = [str(name) for name in known]
    for name in names:
        if name not in known:
            cure = nearest(name, known, f"Choose from {', '.join(sorted(known))}", cutoff=0.5)
            raise InputError(f"{what} has no {name!r}{cure}")


def refuse_unknown_ids(config: Mapping[str, Any], ids: Iterable[str], what: str, read: Collection[str] = ()) -> None:
    """Refuse ids that a config does not have; MONAI would add them silently and leave the misspelt setting as it was.

    A component may get an argument that it takes but has not been given yet. An id of ``read``, to which something
    refers, may be new.

    Raises:
        InputError: naming the first unknown id and the nearest known one.
    """
    for name in ids:
        level: Any = config
        path = as_id(name).split("::")
        for depth, key in enumerate(path):
            if level == {}:  # whoever reads it knows what may be in it
                break
            names = level if isinstance(level, Mapping) else range(len(level)) if isinstance(level, list) else ()
            known = {str(each) for each in names}
            if ConfigComponent.is_instantiable(level) and key not in known:
                further, takes_more = _arguments(level)
                known |= further
                if key in known or (takes_more and not get_close_matches(key, known, n=1, cutoff=CLOSE)):
                    break
            prefix = "::".join(path[:depth]) + "::" if depth else ""
            if key not in known and any(f"{each}::".startswith(f"{prefix}{key}::") for each in read):
                break
            if level is None and depth:
                whole = "::".join(path[:depth])
                raise InputError(f"{what}: {whole} is null, so it has no {key!r}. Set {whole} as a whole.")
            refuse_unknown([prefix + key], [f"{prefix}{each}" for each in known], what)
            level = level[int(key)] if isinstance(level, list) else level[key]


def _arguments(node: Mapping[str, Any]) -> tuple[frozenset[str], bool]:
    """What may stand in a ``_target_`` node, and whether anything else may."""
    target = node["_target_"]
    component = None if is_computed(target) else locate(str(target))
    names, takes_more = argument_names(component) if callable(component) else (frozenset(), component is None)
    return names | OF_COMPONENTS, takes_more


def known_settings(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the settings whose ids the config has."""
    found = {}
    for name, value in settings.items():
        with suppress(InputError):
            refuse_unknown_ids(config, [name], "config")
            found[name] = value
    return found
