"""The one error a user can cure."""

from __future__ import annotations

import sys
from collections.abc import Callable
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


def show_input_errors_as_sentences(place: Callable[[str], str] | None = None) -> None:
    """Make an uncaught :class:`InputError`, and Ctrl-C, end the program with a sentence instead of a traceback.

    Args:
        place: what gives the config file that an id has its value from, and nothing for other words; the file is put
            before sentences that begin with an id.
    """

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        cause = find_input_error(error)
        if issubclass(kind, KeyboardInterrupt):
            print("stopped: give the same command to go on.", file=sys.stderr)
        elif cause is None:
            sys.__excepthook__(kind, error, trace)
        else:
            file = place(str(cause).split(" ")[0].rstrip(":")) if place else ""
            print(f"error: {file}: {cause}" if file else f"error: {cause}", file=sys.stderr)

    sys.excepthook = hook
