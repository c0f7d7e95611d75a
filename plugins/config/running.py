"""What MONAI is at work on, further up the stack: configs cannot hand it over."""

from __future__ import annotations

import inspect
from typing import TypeVar

Kind = TypeVar("Kind")


def running(kind: type[Kind]) -> Kind | None:
    """The innermost object of a class whose method is being called; ``None`` if there is none.

    Args:
        kind: such as :class:`monai.bundle.ConfigParser`, which is building, or :class:`monai.bundle.ConfigWorkflow`.
    """
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, kind):
            return caller
        frame = frame.f_back
    return None
