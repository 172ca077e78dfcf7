"""A throw-away MariaDB for tests, from the system's binaries (Debian: ``mariadb-server``).

It speaks on a unix socket only and dies with the process that started it, ``kill -9`` included.

    python -m tests.embedded_mariadb -- COMMAND …    runs COMMAND with MARIADB_URL and DATABASE_URL
                                                     pointing to one
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests import embedded_pg

START_LIMIT = 60.0  # seconds
NAMES = ("mariadbd", "mysqld")
SYSTEM_FOLDERS = "/usr/sbin:/usr/libexec:/usr/local/sbin:/opt/homebrew/opt/mariadb/bin"
OPTIONS = {
    "skip-networking": "",
    "skip-log-bin": "",
    "innodb-flush-log-at-trx-commit": "0",
    "innodb-buffer-pool-size": "128M",
    "max-connections": "200",
    "character-set-server": "utf8mb4",
}


def find_server() -> str | None:
    """The server's binary, or None where there is none."""
    path = os.pathsep.join([os.environ.get("PATH", ""), SYSTEM_FOLDERS])
    return next(filter(None, (shutil.which(name, path=path) for name in NAMES)), None)


def start(**settings: str) -> dict[str, Any]:
    """Start a server and return the ``DATABASES`` entry for it.

    Raises ``RuntimeError`` where no binaries are found or the server does not come up; the text
    then holds its log.
    """
    server, install = find_server(), shutil.which("mariadb-install-db")
    if server is None or install is None:
        raise RuntimeError("No MariaDB found: apt-get install mariadb-server.")
    # Right below /tmp: the path of a unix socket may not exceed 107 characters.
    base = Path(tempfile.mkdtemp(prefix="djmy-", dir="/tmp"))
    who: dict[str, Any] = {"cwd": "/"}
    if os.geteuid() == 0:
        user = embedded_pg.unprivileged_user()
        who |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        os.chown(base, user.pw_uid, user.pw_gid)
    made = subprocess.run(
        [install, "--no-defaults", f"--datadir={base / 'data'}", "--skip-test-db",
         "--auth-root-authentication-method=normal"],
        capture_output=True, text=True, **who,
    )  # fmt: skip
    if made.returncode:
        raise RuntimeError(f"mariadb-install-db failed:\n{made.stdout}{made.stderr}")
    options = {**OPTIONS, "datadir": base / "data", "socket": base / "socket", **settings}
    command = [server, "--no-defaults", f"--pid-file={base / 'pid'}"]
    command += [f"--{name}={value}" if value else f"--{name}" for name, value in options.items()]
    read_end, write_end = os.pipe()
    with (base / "log").open("w") as log:
        watchdog = subprocess.Popen(
            ["sh", "-c", embedded_pg.WATCHDOG, "sh", *command],
            start_new_session=True,
            stdin=read_end,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "BASE": str(base), "HOME": str(base)},
            **who,
        )
    os.close(read_end)
    deadline = time.monotonic() + START_LIMIT
    client = ["mariadb", "--no-defaults", f"--socket={base / 'socket'}", "--user=root"]
    create = "CREATE DATABASE jobs CHARACTER SET utf8mb4"
    while subprocess.run([*client, "-e", create], capture_output=True).returncode:
        if watchdog.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"MariaDB did not start:\n{(base / 'log').read_text()}")
        time.sleep(0.05)
    atexit.register(os.close, write_end)
    return _entry("jobs", "root", "", str(base / "socket"), "")


def from_url(url: str) -> dict[str, Any]:
    """The ``DATABASES`` entry of ``mariadb://user:password@host:port/name[?socket=path]``."""
    parts = urlsplit(url)
    socket = parse_qs(parts.query).get("socket", [""])[0]
    return _entry(
        parts.path.lstrip("/") or "jobs",
        unquote(parts.username or ""),
        unquote(parts.password or ""),
        socket or parts.hostname or "",
        str(parts.port or ""),
    )


def url(database: dict[str, Any]) -> str:
    """The ``MARIADB_URL`` of a ``DATABASES`` entry made by :func:`start`."""
    return f"mariadb://{database['USER']}@/{database['NAME']}?socket={quote(database['HOST'])}"


def _entry(name: str, user: str, password: str, host: str, port: str) -> dict[str, Any]:
    return {
        "ENGINE": "django.db.backends.mysql",
        "NAME": name,
        "USER": user,
        "PASSWORD": password,
        "HOST": host,
        "PORT": port,
        "OPTIONS": {"charset": "utf8mb4"},
        "TEST": {"NAME": "test_jobs", "CHARSET": "utf8mb4"},
    }


def main(arguments: list[str]) -> int:
    command = arguments[1:] if arguments[:1] == ["--"] else arguments
    if not command:
        print(__doc__)
        return 2
    address = url(start())
    project = address.replace("mariadb://", "mysql://").replace("?socket=", "?unix_socket=")
    return embedded_pg.run_with(command, MARIADB_URL=address, DATABASE_URL=project)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
