"""A handler may call ``os.fork()``: what it leaves in the other process must not go on as a worker.

There the handler would return into the engine, with copies of the claims in hand and of the
connections of this process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from types import FrameType
from typing import NoReturn


def leave_if_forked(pid: int, error: BaseException | None = None) -> None:
    """End the calling process if it is not ``pid``, the one in which the handler was called."""
    if os.getpid() != pid:
        _leave(error)


def _leave(error: BaseException | None) -> NoReturn:
    """As Python ends: the code of SystemExit, 1 after another exception."""
    code = 0
    with contextlib.suppress(BaseException):
        if isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        elif error is not None:
            code = 1
            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code & 0xFF)


_local = threading.local()
_listened: set[int] = set()


def listen(number: int, act: Callable[[], object]) -> None:
    """Call ``act`` at signal ``number`` in this process, and not in those that a handler forks.

    There signals do what they usually do: a handler that terminates such a process must end that
    one, and not stop the worker.
    """

    def on_signal(_: int, frame: FrameType | None) -> None:
        act()

    if not _listened:
        os.register_at_fork(before=_hold, after_in_parent=_let_go, after_in_child=_as_usual)
    _listened.add(number)
    signal.signal(number, on_signal)


def _hold() -> None:
    # What is sent to the new process before it is ready would else be lost.
    _local.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _listened)


def _let_go() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _local.mask)


def _as_usual() -> None:
    for number in _listened:
        usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, usual)
    _let_go()
