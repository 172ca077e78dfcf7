"""Ends the worker processes that tests have started when the tests' own process is gone.

A test run that is killed cannot tidy up, and its workers would go on for as long as their handlers
wait. One shell reads the numbers of process groups from a pipe whose other end only this process
holds; when that closes, it kills those groups that were not taken back.
"""

from __future__ import annotations

import subprocess
import threading

SCRIPT = """
groups=' '
while read -r sign group; do
    case $sign in
        +) groups="$groups$group " ;;
        -) case "$groups" in
               *" $group "*) groups="${groups%%" $group "*} ${groups#*" $group "}" ;;
           esac ;;
    esac
done
for group in $groups; do kill -9 -- "-$group" 2>/dev/null; done
"""

_lock = threading.Lock()
_shell: subprocess.Popen[bytes] | None = None


def guard(group: int) -> None:
    """Kill this process group when the calling process ends, ``kill -9`` included."""
    _tell("+", group)


def release(group: int) -> None:
    """The group has ended; its number may be somebody else's soon."""
    _tell("-", group)


def _tell(sign: str, group: int) -> None:
    global _shell
    with _lock:
        if _shell is None:
            _shell = subprocess.Popen(
                ["sh", "-c", SCRIPT],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        assert _shell.stdin is not None
        _shell.stdin.write(f"{sign} {group}\n".encode())
        _shell.stdin.flush()
