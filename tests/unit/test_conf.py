"""The settings: their defaults, what is refused and how it is told."""

from __future__ import annotations

import base64
import dataclasses
from datetime import timedelta
from typing import Any

import pytest
from django.test import override_settings

from django_jobs import conf
from django_jobs.definitions.retry import Retry
from django_jobs.errors import ConfigurationError

SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef01234567").decode()


def given(**keys: Any) -> override_settings:
    return override_settings(DJANGO_JOBS=keys)


def test_the_defaults_are_those_of_the_contract() -> None:
    with given():
        found = conf.get()
    assert (found.lease, found.heartbeat, found.grace) == (15.0, 5.0, 25.0)
    assert (found.poll_min, found.poll_max) == (0.2, 2.0)
    assert (found.keep_completed, found.keep_failed) == (7 * 86_400, 90 * 86_400)
    assert (found.crash_limit, found.step_limit, found.retries) == (3, 1000, None)
    assert (found.max_input, found.max_output, found.max_event) == (2**20, 2**20, 2**16)
    assert (found.notify, found.prepare, found.sweep, found.schedules) == (True,) * 4
    assert (found.http_allowed_ports, found.http_allow_plain) == ((443,), False)
    assert (found.default_runner, found.database, found.database_alias) == ("db", None, "default")
    assert (found.run_secret, found.webhook_secrets, found.extra_tries) == (None, (), 0)
    assert conf.problems() == []


def test_without_the_dict_the_defaults_hold() -> None:
    with override_settings():
        from django.conf import settings

        if hasattr(settings, "DJANGO_JOBS"):
            del settings.DJANGO_JOBS
        conf.forget()
        assert conf.get().lease == 15.0
    conf.forget()


def test_times_are_seconds_or_timedeltas() -> None:
    with given(LEASE=timedelta(seconds=30), HEARTBEAT=2, KEEP_FAILED=timedelta(days=1)):
        found = conf.get()
    assert (found.lease, found.heartbeat, found.keep_failed) == (30.0, 2.0, 86_400.0)


def test_the_settings_are_read_once_and_again_when_overridden() -> None:
    with given(STEP_LIMIT=7):
        assert conf.get() is conf.get()
        assert conf.get().step_limit == 7
        with given(STEP_LIMIT=8):
            assert conf.get().step_limit == 8
        assert conf.get().step_limit == 7
    assert conf.get().step_limit == 1000


def test_the_settings_object_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        conf.get().lease = 1.0  # type: ignore[misc]


def test_retries_are_a_number_or_a_policy() -> None:
    with given(RETRIES=2):
        assert conf.get().retries == Retry(max_attempts=3)
        assert conf.get().extra_tries == 2
    with given(RETRIES=Retry(delay=9)):
        assert conf.get().retries == Retry(delay=9)
        assert conf.get().extra_tries == 0


def test_queues_are_read_by_name() -> None:
    with given(QUEUES={"mail": {"limit": 4, "fair_by": "tenant"}, "slow": {}}):
        queues = conf.get().queues
    assert queues["mail"] == conf.QueueSettings(limit=4, priority=0, fair_by="tenant")
    assert queues["slow"] == conf.QueueSettings()
    with pytest.raises(TypeError):
        queues["new"] = conf.QueueSettings()  # type: ignore[index]


def test_nothing_may_be_kept_for_ever_or_not_at_all() -> None:
    with given(KEEP_COMPLETED=None, KEEP_FAILED=0):
        assert (conf.get().keep_completed, conf.get().keep_failed) == (None, 0.0)


def test_host_names_are_compared_in_lower_case() -> None:
    with given(HTTP_ALLOWED_HOSTS=["Jobs.Internal."]):
        assert conf.get().http_allowed_hosts == ("jobs.internal",)


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("LEASE", 0), ("LEASE", -1), ("LEASE", "15"), ("LEASE", True), ("LEASE", None),
        ("LEASE", float("nan")), ("GRACE", -1), ("POLL_MIN", timedelta(0)),
        ("KEEP_COMPLETED", -1), ("KEEP_COMPLETED", "7 days"), ("CRASH_LIMIT", 0),
        ("CRASH_LIMIT", 2.0), ("STEP_LIMIT", True), ("RETRIES", -1), ("RETRIES", True),
        ("RETRIES", "3"), ("DATABASE", 1), ("DATABASE", ""), ("NOTIFY", "yes"), ("PREPARE", 1),
        ("SWEEP", None), ("SCHEDULES", 0), ("SWEEP_INTERVAL", 0), ("TENANT_FIELDS", "org_id"),
        ("TENANT_FIELDS", [1]), ("REQUIRED_INPUT", {"a"}), ("REQUIRED_INPUT", [""]),
        ("TENANT_CONTEXT", "nodots"), ("TENANT_CONTEXT", "a.b c"), ("DEFAULT_RUNNER", "rq"),
        ("QUEUES", []), ("QUEUES", {"": {}}), ("QUEUES", {"a": 4}), ("QUEUES", {"a\n": {}}),
        ("QUEUES", {"a": {"limit": 0}}), ("QUEUES", {"a": {"priority": 101}}),
        ("QUEUES", {"a": {"limt": 1}}), ("QUEUES", {"a": {"runner": "rq"}}), ("RUN_SECRET", 5),
        ("WEBHOOK_SECRETS", SECRET), ("WEBHOOK_SECRETS", ["whsec_short"]),
        ("WEBHOOK_SECRETS", [SECRET.removeprefix("whsec_")]), ("HTTP_ALLOWED_HOSTS", "a.b"),
        ("HTTP_ALLOWED_HOSTS", ["https://a.b"]), ("HTTP_ALLOWED_PORTS", [0]),
        ("HTTP_ALLOWED_PORTS", 443), ("HTTP_ALLOWED_PORTS", ["443"]), ("HTTP_ALLOW_PLAIN", 1),
        ("HTTP_BASE_URL", "a.b/c"), ("CALLBACK_BASE_URL", "ftp://a"), ("MAX_INPUT", 10),
        ("MAX_OUTPUT", 1.5), ("MAX_EVENT", None), ("REDACT", "ssn"), ("LISTEN_DSN", 5),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_its_key_and_remedy(key: str, wrong: Any) -> None:
    with given(**{key: wrong}):
        [problem] = conf.problems()
        assert problem.key == key
        assert key in problem.message
        assert problem.hint.startswith("Give ")
        with pytest.raises(ConfigurationError, match=key):
            conf.get()


def test_every_wrong_value_is_told_at_once() -> None:
    with given(LEASE="x", NOTIFY="y", LEES=1):
        assert {problem.key for problem in conf.problems()} == {"LEASE", "NOTIFY", "LEES"}


@pytest.mark.parametrize(
    ("key", "near"),
    [("LEES", "LEASE"), ("lease", "LEASE"), ("HARTBEAT", "HEARTBEAT"), ("QUEUE", "QUEUES")],
)
def test_an_unknown_key_is_answered_with_the_nearest_name(key: str, near: str) -> None:
    with given(**{key: 5}):
        [problem] = conf.problems()
        assert repr(key) in problem.message
        assert problem.hint == f"Did you mean {near!r}?"
        assert conf.get().lease == 15.0  # a check error, but nothing stops


def test_an_unknown_key_that_is_near_to_nothing_gets_the_list() -> None:
    with override_settings(DJANGO_JOBS={"XYZZY": 1, 5: 2}):
        for problem in conf.problems():
            assert "HEARTBEAT" in problem.hint


def test_a_heartbeat_that_cannot_keep_its_lease_names_both_keys() -> None:
    with given(LEASE=15, HEARTBEAT=7.5):
        assert conf.problems() == []
    with given(LEASE=15, HEARTBEAT=7.6):
        [problem] = conf.problems()
        assert "HEARTBEAT" in problem.message
        assert "LEASE" in problem.message
        with pytest.raises(ConfigurationError, match="LEASE"):
            conf.get()


def test_the_shortest_poll_is_not_above_the_longest() -> None:
    with given(POLL_MIN=3):
        [problem] = conf.problems()
        assert problem.key == "POLL_MIN"


def test_the_setting_must_be_a_dict() -> None:
    with override_settings(DJANGO_JOBS=[1]):
        [problem] = conf.problems()
        assert "must be a dict" in problem.message
        with pytest.raises(ConfigurationError):
            conf.get()


def test_secrets_never_show() -> None:
    with given(WEBHOOK_SECRETS=[SECRET], RUN_SECRET="hunter2", LISTEN_DSN="postgres://u:pw@h"):
        shown = repr(conf.get())
    for secret in (SECRET, "hunter2", "pw@h"):
        assert secret not in shown
    with given(WEBHOOK_SECRETS=[SECRET, "hunter2"]):
        assert "hunter2" not in str(conf.problems())


def test_every_key_is_described_for_the_docs() -> None:
    for key, one in conf.FIELDS.items():
        assert key == key.upper()
        assert one.metadata["doc"].endswith("."), key
        groups = {"Running", "Database", "Retention", "Input", "HTTP", "Celery"}
        assert one.metadata["group"] in groups
    assert len(conf.FIELDS) == len(dataclasses.fields(conf.JobsSettings))


def test_every_default_is_a_value_that_the_key_accepts() -> None:
    defaults = conf.JobsSettings()
    for key, one in conf.FIELDS.items():
        value = getattr(defaults, one.name)
        assert one.metadata["read"](value) == value, key
