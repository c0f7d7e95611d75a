"""The one error a user can cure."""

from __future__ import annotations

import sys
from types import TracebackType


class InputError(ValueError):
    """Input that the user must change: one sentence that names the file or key, the fault and the cure."""


def find_input_error(error: BaseException | None) -> InputError | None:
    """The :class:`InputError` that caused ``error``, however deeply other exceptions wrap it."""
    while error is not None:
        if isinstance(error, InputError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    cause = find_input_error(error)
    if cause is None:
        sys.__excepthook__(kind, error, trace)
    else:
        print(f"error: {cause}", file=sys.stderr)


def show_input_errors_as_sentences() -> None:
    """Make an uncaught :class:`InputError` end the program with its sentence instead of a traceback."""
    sys.excepthook = _hook
