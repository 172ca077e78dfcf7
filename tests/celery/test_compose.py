"""compose.yaml, by Docker itself where it is at hand, and as data everywhere."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from django_jobs import conf
from tests.celery.brokers import is_required
from tests.support import ROOT

SERVICES = {"migrate", "web", "worker", "celery", "beat", "postgres", "redis"}


def has_compose() -> bool:
    """Whether Docker and its compose plugin are at hand."""
    if not shutil.which("docker"):
        return False
    return subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """As Docker reads them, or as YAML merges them."""
    file = ROOT / "compose.yaml"
    if has_compose():
        command = ["docker", "compose", "-f", str(file), "config"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return dict(yaml.safe_load(done.stdout)["services"])
    return dict(yaml.safe_load(file.read_text())["services"])


def seconds(text: str) -> float:
    minutes, _, rest = text.rpartition("m")
    return 60 * float(minutes or 0) + float((rest or "0s").rstrip("s") or 0)


@pytest.mark.skipif(
    not is_required("compose"), reason="left to .ci/run; TEST_REQUIRE=compose runs it here"
)
def test_it_follows_the_compose_specification(tmp_path: Path) -> None:
    """The specification's own schema, as check-jsonschema brings it: Docker itself is seldom at hand."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    tool = shutil.which("check-jsonschema", path=places)
    assert tool is not None, "pip install check-jsonschema"

    def is_valid(file: Path) -> bool:
        command = [tool, "--builtin-schema", "vendor.compose-spec", str(file)]
        return subprocess.run(command, capture_output=True).returncode == 0

    file = ROOT / "compose.yaml"
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(file.read_text().replace("stop_grace_period", "stop_grace"))
    assert is_valid(file)
    assert not is_valid(wrong)


def test_every_part_is_there_and_waits_for_what_it_needs(services: dict[str, Any]) -> None:
    assert services.keys() == SERVICES
    for name in ("web", "worker", "celery", "beat"):
        needs = services[name]["depends_on"]
        assert needs["migrate"]["condition"] == "service_completed_successfully"
        assert needs["redis"]["condition"] == "service_healthy"
    for name in ("postgres", "redis"):
        assert services[name]["healthcheck"]["test"]
    assert services["migrate"]["depends_on"]["postgres"]["condition"] == "service_healthy"


@pytest.mark.parametrize("name", ["worker", "celery"])
def test_workers_may_stop_longer_than_the_grace(services: dict[str, Any], name: str) -> None:
    assert seconds(services[name]["stop_grace_period"]) > conf.JobsSettings().grace


def test_the_commands_exist(services: dict[str, Any]) -> None:
    def words(name: str) -> list[str]:
        command = services[name]["command"]
        return list(command) if isinstance(command, list) else shlex.split(command)

    assert words("worker")[:3] == ["python", "manage.py", "runjobs"]
    assert words("celery")[:4] == ["celery", "-A", "testproject.celery", "worker"]
    assert "django_jobs.celery:JobsScheduler" in words("beat")


def test_the_image_holds_what_the_commands_need() -> None:
    text = (ROOT / "Dockerfile").read_text()
    copied = [
        word for line in text.splitlines() if line.startswith("COPY") for word in line.split()[1:-1]
    ]
    assert {"manage.py", "testproject", "django_jobs", "pyproject.toml"} <= set(copied)
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert "celery" in text
    assert "USER app" in text
