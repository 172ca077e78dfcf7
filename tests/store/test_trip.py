"""Several statements in one round trip: values, errors, lost connections, prepared or not."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

import psycopg
import pytest
from django.db import connections

from django_jobs.store.dialects.postgresql import array_of, text_array_of
from django_jobs.store.session import Session
from django_jobs.store.trip import Link, numbered

pytestmark = pytest.mark.django_db(transaction=True)
NASTY = ['a"b', "c\\d", "{e,f}", "NULL", "", " g ", "h\ni", "ü€😀", "%s", None]


@pytest.fixture(params=[True, False], ids=["prepared", "unprepared"])
def session(request: pytest.FixtureRequest) -> Iterator[Session]:
    if connections["default"].vendor != "postgresql":
        pytest.skip("psycopg only")
    made = Session()
    made.own(prepare=request.param)
    made.connection.ensure_connection()
    yield made
    made.connection.close()


def test_values_arrive_as_they_were_sent(session: Session) -> None:
    key = UUID(int=7)
    for _ in range(2):
        [lists, one] = session.together(
            [
                ("SELECT unnest(%(texts)s::text[])", {"texts": text_array_of(NASTY)}),
                (
                    "SELECT %(key)s::uuid, %(number)s::int, %(text)s::text, %(none)s::text, %(yes)s::boolean, "
                    "%(keys)s::uuid[] @> ARRAY[%(key)s::uuid], now() - now() < interval '1 s', %(real)s::float8",
                    {
                        "key": key, "number": -5, "text": NASTY[0], "none": None, "yes": True,
                        "keys": array_of([key.hex]), "real": 0.25,
                    },
                ),
            ]
        )  # fmt: skip
        assert [row[0] for row in lists.rows] == NASTY
        assert one.rows == [(key, -5, NASTY[0], None, True, True, True, 0.25)]


def test_an_error_undoes_all_of_it_and_leaves_the_connection_usable(session: Session) -> None:
    make = ("INSERT INTO {queue} (name) VALUES (%(name)s)", {"name": "first"})
    with pytest.raises(psycopg.errors.DivisionByZero):
        session.together([make, ("SELECT 1 / %(zero)s::int", {"zero": 0}), make])
    assert session.rows("SELECT 1 FROM {queue} WHERE name = 'first'") == []
    [made, counted] = session.together([make, ("SELECT count(*) FROM {queue}", {})])
    assert (made.touched, made.rows) == (1, [])
    assert counted.rows == [(1,)]


def test_statements_that_the_driver_has_forgotten_are_prepared_anew(session: Session) -> None:
    """psycopg deallocates all that is prepared when it sees a ROLLBACK; a worker must not die of it."""
    for _ in range(3):
        [answered] = session.together([("SELECT 3", {})])
        session.rows("SELECT 4 WHERE %(x)s::int = 1", x=1)
    with pytest.raises(ZeroDivisionError), session.transaction():
        session.rows("SELECT 4 WHERE %(x)s::int = 1", x=1)
        1 / 0  # noqa: B018
    [answered] = session.together([("SELECT 3", {})])
    assert answered.rows == [(3,)]
    assert session.rows("SELECT 4 WHERE %(x)s::int = 1", x=1) == [(4,)]
    session.connection.connection.execute("DEALLOCATE ALL")
    [made, answered] = session.together(
        [("INSERT INTO {queue} (name) VALUES (%(name)s)", {"name": "once"}), ("SELECT 3", {})]
    )
    assert (made.touched, answered.rows) == (1, [(3,)])


def test_statements_have_a_time_limit_and_no_trace_of_it_stays(session: Session) -> None:
    show = "SELECT current_setting('statement_timeout'), current_setting('enable_seqscan')"
    [inside] = session.together([(show, {})])
    assert inside.rows == [("30s", "off")]
    assert session.rows(show) == [("0", "on")]


def test_a_connection_that_is_cut_is_known_to_be_lost(session: Session) -> None:
    with pytest.raises(psycopg.Error) as caught:
        session.together(
            [("SELECT 1", {}), ("SELECT pg_terminate_backend(pg_backend_pid())", {}), ("SELECT 2", {})]
        )  # fmt: skip
    assert session.dialect.is_lost(caught.value)
    session.reconnect()
    [answered] = session.together([("SELECT 3", {})])
    assert answered.rows == [(3,)]


def test_a_large_batch_is_sent_while_answers_come_back(session: Session) -> None:
    """Both directions fill up: whoever only sends would wait for ever."""
    text = "x" * 200_000
    session.connection.ensure_connection()
    link = Link(session.connection.connection)
    asked = [("SELECT %(text)s::text", {"text": text})] * 60
    answered = link.run([("BEGIN", {}), *asked, ("COMMIT", {})], prepare=session.prepare)
    assert [one.rows for one in answered[1:-1]] == [[(text,)]] * 60


def test_a_name_that_comes_twice_is_one_parameter() -> None:
    assert numbered("a %(x)s b %(y)s c %(x)s 5 %% 2") == (b"a $1 b $2 c $1 5 % 2", ("x", "y"))
