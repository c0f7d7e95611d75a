"""What MONAI could not build, told in one sentence."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

from plugins.config.names import nodes

_COMPONENT = re.compile(r"Failed to instantiate component '([^']+)'")
_REFERENCE = re.compile(r"__local_refs\['([^']+)'\]")
_EXPRESSION = re.compile(r"Failed to evaluate ConfigExpression: \n(.*)", re.DOTALL)


def building_fault(error: BaseException, config: Mapping[str, Any], sections: set[str]) -> str:
    """What is wrong with the component or expression that could not be built; empty for any other error.

    Args:
        error: as MONAI raises it: a chain of failures, of which the innermost that names a component tells most.
        config: parsed and merged.
        sections: those that are run; what fails in their expressions is work, not building.
    """
    found = ""
    link: BaseException | None = error
    while link is not None:
        component, expression = _COMPONENT.match(str(link)), _EXPRESSION.match(str(link))
        if component:
            target = component.group(1)
            ids = [
                path.removesuffix("::_target_")
                for path, value in nodes(config)
                if path.endswith("_target_") and f".{target}".endswith(f".{value}")
            ]
            found = _sentence(target, ids, link)
        elif expression:
            text = _REFERENCE.sub(r"@\1", ast.literal_eval(expression.group(1)))
            ids = [path for path, value in nodes(config) if value == text]
            if any(path.split("::")[0] in sections for path in ids):
                return ""
            found = _sentence(text, ids, link)
        elif found:
            break
        link = link.__cause__
    return found


def _sentence(what: str, ids: Sequence[str], error: BaseException) -> str:
    cause = error.__cause__ or error
    reason = " ".join(str(cause).split()).rstrip(".") or "no message"
    subject = f"{' or '.join(ids)} ({what})" if ids else what
    return f"{subject} could not be built, {type(cause).__name__}: {reason}. Correct it."
