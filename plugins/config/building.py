"""What MONAI is building: found from within, the settings behind it, and what could not be built as a sentence."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

from monai.bundle import ConfigParser

from plugins.config.names import nearest, nodes, plain, references
from plugins.errors import InputError

Kind = TypeVar("Kind")
WITHOUT_EFFECT = frozenset(
    ("amp", "bundle_root", "cache_dir", "dataset_dir", "device", "max_epochs", "num_threads", "num_workers",
     "output_dir", "train::dataset::data", "train::handlers")
)  # fmt: skip
"""Ids that say where things lie, how fast and for how long a training goes, and who watches it."""
_NO_SETTINGS = ("_desc_", "_requires_")
_COMPONENT = re.compile(r"Failed to instantiate component '([^']+)'")
_REFERENCE = re.compile(r"__local_refs\['([^']+)'\]")
_EXPRESSION = re.compile(r"Failed to evaluate ConfigExpression: \n(.*)", re.DOTALL)


def running(kind: type[Kind]) -> Kind | None:
    """The innermost object of a class, such as a ``ConfigParser``, whose method is being called; ``None`` without."""
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, kind):
            return caller
        frame = frame.f_back
    return None


def settings_behind(ids: Sequence[str], without: Collection[str] = ()) -> dict[str, Any]:
    """All that is built for some ids, as it stands in the config: their nodes, and whatever these refer to.

    A component for configs: it reads the one that it stands in.

    Args:
        ids: where to begin.
        without: further ids that have no effect.

    Returns:
        id to its node, without those of ``without`` and :data:`WITHOUT_EFFECT`; references and expressions are texts,
        and an object that Python code has put there is the name of its class.

    Raises:
        InputError: if an id is not there.
        RuntimeError: outside of a config.

    Example:
        >>> config = {"rate": 0.1, "optimizer": {"_target_": "torch.optim.SGD", "lr": "@rate"}}
        >>> config["settings"] = {"_target_": "plugins.config.settings_behind", "ids": ["optimizer"]}
        >>> ConfigParser(config).get_parsed_content("settings")
        {'optimizer': {'_target_': 'torch.optim.SGD', 'lr': '@rate'}, 'rate': 0.1}
    """
    parser = running(ConfigParser)
    if parser is None:
        raise RuntimeError("settings_behind is for configs: no config is being built")

    left_out = {*WITHOUT_EFFECT, *without}

    def counts(path: str) -> bool:
        return path not in left_out and path.rpartition("::")[2] not in _NO_SETTINGS

    settings: dict[str, Any] = {}
    waiting = list(ids)
    while waiting:
        name = waiting.pop(0)
        if name in settings or name in left_out:
            continue
        if name not in parser:
            raise InputError(f"settings_behind: there is no {name!r}{nearest(name, parser.get())}")
        settings[name] = plain(parser[name], lambda made: type(made).__name__, counts, name)
        waiting += [each for path, text in nodes(settings[name], name) for each in references(parser, path, text)]
    return settings


def building_fault(error: BaseException, config: Mapping[str, Any], sections: set[str]) -> str:
    """What is wrong with the component or expression that could not be built; empty for any other error.

    MONAI raises a chain of failures, of which the innermost that names a component tells most. What fails in the
    expressions of ``sections``, which are run, is work, not building.
    """
    found = ""
    link: BaseException | None = error
    while link is not None:
        component, expression = _COMPONENT.match(str(link)), _EXPRESSION.match(str(link))
        if component:
            what = component[1]
            targets = [(path, value) for path, value in nodes(config) if path.endswith("::_target_")]
            ids = [path.removesuffix("::_target_") for path, value in targets if f".{what}".endswith(f".{value}")]
        elif expression:
            what = _REFERENCE.sub(r"@\1", ast.literal_eval(expression[1]))
            ids = [path for path, value in nodes(config) if value == what]
            if any(path.split("::")[0] in sections for path in ids):
                return ""
        elif found:
            break
        if component or expression:
            cause = link.__cause__ or link
            reason = " ".join(str(cause).split()).rstrip(".") or "no message"
            subject = f"{' or '.join(ids)} ({what})" if ids else what
            found = f"{subject} could not be built, {type(cause).__name__}: {reason}. Correct it."
        link = link.__cause__
    return found
