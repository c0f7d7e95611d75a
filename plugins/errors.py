"""The one error a user can cure."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from types import TracebackType

from plugins.interrupts import SENTENCE, asked, end

_logger = logging.getLogger(__name__)


class InputError(ValueError):
    """Input that the user must change: one sentence that names the file or key, the fault and the cure."""


def find_input_error(error: BaseException | None) -> InputError | None:
    """The :class:`InputError` that caused ``error``, however deeply other exceptions wrap it."""
    while error is not None:
        if isinstance(error, InputError):
            return error
        error = error.__cause__ or error.__context__
    return None


def sentence_of(error: BaseException, what: str) -> str:
    """What went wrong with one of many: the :class:`InputError` behind it, or else its kind and message."""
    cause = find_input_error(error)
    if cause is not None:
        return str(cause) if what in str(cause) else f"{what}: {cause}"
    lines = str(error).strip().splitlines() or [""]
    return f"{what}: failed ({type(error).__name__}: {lines[-1][:200]}); correct the scan or leave it out."


def show_input_errors_as_sentences(
    place: Callable[[str], str] | None = None, explain: Callable[[BaseException], str] | None = None
) -> None:
    """Make an uncaught :class:`InputError`, and Ctrl-C, end the program with a sentence instead of a traceback.

    Args:
        place: what gives the config file that an id has its value from, and nothing for other words; the file is put
            before sentences that begin with an id.
        explain: gives a sentence for other errors that the user must cure, and nothing for bugs; the traceback of the
            former is logged at the level of debugging.
    """

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print(SENTENCE, file=sys.stderr)
            return
        if asked():  # what Ctrl-C broke off tells of itself
            end()
            return
        cause = find_input_error(error)
        sentence = str(cause) if cause else explain(error) if explain else ""
        if not sentence:
            sys.__excepthook__(kind, error, trace)
            return
        _logger.debug(sentence, exc_info=(kind, error, trace))
        file = place(sentence.split(" ")[0].rstrip(":")) if place else ""
        print(f"error: {file}: {sentence}" if file else f"error: {sentence}", file=sys.stderr)

    sys.excepthook = hook
