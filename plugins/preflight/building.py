"""What MONAI could not build, told in one sentence."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

from plugins.options import nodes

_COMPONENT = re.compile(r"Failed to instantiate component '([^']+)'")
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
            found = _sentence(component.group(1), "_target_", config, link)
        elif expression:
            text = ast.literal_eval(expression.group(1))
            places = [path for path, value in nodes(config) if value == text]
            if any(path.split("::")[0] in sections for path in places):
                return ""
            found = _sentence(text, "", config, link)
        elif found:
            break
        link = link.__cause__
    return found


def _sentence(text: str, key: str, config: Mapping[str, Any], error: BaseException) -> str:
    ids = [
        path.removesuffix("_target_").removesuffix("::")
        for path, value in nodes(config)
        if value == text and path.endswith(key)
    ]
    cause = error.__cause__ or error
    reason = " ".join(str(cause).split()) or type(cause).__name__
    place = ids[0] if len(ids) == 1 else " or ".join(ids[:3])
    return f"{place} ({text}) cannot be made, {type(cause).__name__}: {reason.rstrip('.')}: correct its arguments."
