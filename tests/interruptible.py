"""Processes that Ctrl-C reaches, though the tests may run in the background, where shells have it ignored."""

import signal


def restore_ctrl_c() -> None:
    """To be run between fork and exec, as ``preexec_fn``."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
