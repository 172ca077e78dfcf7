"""A throw-away PgBouncer in transaction mode before a throw-away PostgreSQL (Debian: ``pgbouncer``).

Both die with the process that started them, ``kill -9`` included.

    python -m tests.embedded_pgbouncer -- COMMAND …    runs COMMAND with the tests' database behind one
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests import embedded_pg

START_LIMIT = 30.0  # seconds
PORT = 6432
# It has nothing to lose, and older ones take SIGQUIT for nothing.
WATCHDOG = embedded_pg.WATCHDOG.replace("-QUIT", "-KILL")
CONFIGURATION = """\
[databases]
* = host={server} port=5432

[pgbouncer]
unix_socket_dir = {base}
listen_port = {port}
auth_type = trust
auth_file = {base}/users
pool_mode = {mode}
default_pool_size = 8
max_client_conn = 300
ignore_startup_parameters = extra_float_digits
"""


def find_pooler() -> str | None:
    """The binary of PgBouncer, or None where there is none."""
    return shutil.which(
        "pgbouncer", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])
    )


def start(server: dict[str, Any], mode: str = "transaction") -> dict[str, Any]:
    """Start a pooler before ``server`` and return the ``DATABASES`` entry that leads through it.

    Raises ``RuntimeError`` where there is no pooler or it does not come up.
    """
    entry, _, leash = _launch(server, mode)
    atexit.register(os.close, leash)
    return entry


@contextmanager
def running(server: dict[str, Any], mode: str = "transaction") -> Iterator[dict[str, Any]]:
    """The same for a while: its connections to the server are gone afterwards."""
    entry, watchdog, leash = _launch(server, mode)
    try:
        yield entry
    finally:
        os.close(leash)
        watchdog.wait()


def _launch(
    server: dict[str, Any], mode: str
) -> tuple[dict[str, Any], subprocess.Popen[bytes], int]:
    pooler = find_pooler()
    if pooler is None:
        raise RuntimeError("No PgBouncer found: apt-get install pgbouncer.")
    base = Path(tempfile.mkdtemp(prefix="djpb-", dir="/tmp"))
    settings = base / "pgbouncer.ini"
    settings.write_text(
        CONFIGURATION.format(server=server["HOST"], base=base, port=PORT, mode=mode)
    )
    (base / "users").write_text('"postgres" ""\n')
    who: dict[str, Any] = {"cwd": "/"}
    if os.geteuid() == 0:  # it refuses root
        user = embedded_pg.unprivileged_user()
        who |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        for path in (base, settings, base / "users"):
            os.chown(path, user.pw_uid, user.pw_gid)
    read_end, write_end = os.pipe()
    with (base / "log").open("w") as log:
        watchdog = subprocess.Popen(
            ["sh", "-c", WATCHDOG, "sh", pooler, str(settings)],
            start_new_session=True,
            stdin=read_end,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "BASE": str(base)},
            **who,
        )
    os.close(read_end)
    deadline = time.monotonic() + START_LIMIT
    while not (base / f".s.PGSQL.{PORT}").exists():
        if watchdog.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"PgBouncer did not start:\n{(base / 'log').read_text()}")
        time.sleep(0.02)
    entry = {
        **server, "HOST": str(base), "PORT": str(PORT), "DISABLE_SERVER_SIDE_CURSORS": True,
        "TEST": {"NAME": "test_jobs"},
    }  # fmt: skip
    return entry, watchdog, write_end


def main(arguments: list[str]) -> int:
    command = arguments[1:] if arguments[:1] == ["--"] else arguments
    if not command:
        print(__doc__)
        return 2
    database = start(embedded_pg.start())
    return embedded_pg.run_with(command, TEST_DATABASE="postgresql", TEST_DB=json.dumps(database))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
