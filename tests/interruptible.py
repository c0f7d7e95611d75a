"""Processes that Ctrl-C reaches, though the tests may run in the background, where shells have it ignored."""

import signal
import subprocess
from typing import Any

PATIENCE = 1200.0
"""Seconds after which a test takes something for hung; on a busy machine an import alone may take minutes."""


def restore_ctrl_c() -> None:
    """To be run between fork and exec, as ``preexec_fn``."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(command: list[Any], **settings: Any) -> subprocess.Popen[str]:
    """A process with pipes in a session of its own, so that Ctrl-C may be sent to it and all that it starts."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes, start_new_session=True, preexec_fn=restore_ctrl_c, **settings)
