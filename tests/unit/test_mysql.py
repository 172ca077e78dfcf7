"""How the engine's statements are said on MySQL, and which servers are refused."""

from __future__ import annotations

import pytest

from django_jobs.store.dialects import mysql
from django_jobs.store.fitness import server_fault


def said(template: str) -> list[str]:
    return [" ".join(statement.split()) for statement in mysql.plan_of(template).statements]


def test_an_update_that_returns_is_followed_by_a_look_at_the_row() -> None:
    assert said("UPDATE {job} SET fence = 1 WHERE id = %(id)s AND fence = 0 RETURNING status") == [
        "UPDATE {job} SET fence = 1 WHERE id = %(id)s AND fence = 0",
        "SELECT status FROM {job} WHERE id = %(id)s",
    ]


def test_an_update_of_a_list_locks_those_that_match_first() -> None:
    assert said("UPDATE {job} SET turn = 1 WHERE id {among(ids)} AND turn = 0 RETURNING id") == [
        "SELECT id FROM {job} {index(primary)} WHERE id {among(ids)} AND turn = 0 FOR UPDATE",
        "UPDATE {job} SET turn = 1 WHERE id {among(ids)} AND turn = 0",
        "SELECT id FROM {job} WHERE id {among(ids)}",
    ]


def test_picked_rows_are_read_before_those_they_are_joined_to() -> None:
    picked = "SELECT id FROM {job} WHERE turn = 0 LIMIT %(limit)s {skip_locked}"
    assert said(f"UPDATE {{job}} SET turn = 1 WHERE id IN ({picked}) AND turn = 0") == [
        f"UPDATE ({picked}) AS picked STRAIGHT_JOIN {{job}} ON {{job}}.id = picked.id "
        "SET turn = 1 WHERE turn = 0"
    ]
    assert said("DELETE FROM {tick} WHERE id IN (SELECT id FROM {tick} LIMIT %(chunk)s)") == [
        "DELETE {tick} FROM (SELECT id FROM {tick} LIMIT %(chunk)s) AS picked "
        "STRAIGHT_JOIN {tick} ON {tick}.id = picked.id"
    ]


def test_a_conditional_upsert_decides_before_it_assigns() -> None:
    insert = "INSERT INTO {permit} (number, fence, at) VALUES (%(n)s, %(f)s, {after(x)})"
    assert said(
        f"{insert} ON CONFLICT (number) DO UPDATE SET fence = excluded.fence, at = excluded.at "
        "WHERE {permit}.at < {now} RETURNING id"
    ) == [
        f"{insert} ON DUPLICATE KEY UPDATE number = {{permit}}.number",
        "UPDATE {permit} SET fence = %(f)s, at = {after(x)} WHERE number = %(n)s "
        "AND {permit}.at < {now}",
        "SELECT id FROM {permit} WHERE number = %(n)s AND fence = %(f)s",
    ]


def test_a_statement_of_no_special_shape_stands_for_itself() -> None:
    for template in (
        "SELECT status FROM {job} WHERE status IN ('pending', 'paused')",
        "UPDATE {job} SET parent_id = NULL WHERE parent_id IN (%(id_0)s, %(id_1)s)",
    ):
        assert said(template) == [template]


def test_rows_are_cut_into_statements_by_number_and_by_size() -> None:
    small = [{"output": "1"}] * (mysql.ROWS + 1)
    assert [len(portion) for portion in mysql.portions(small)] == [mysql.ROWS, 1]
    large = [{"output": "x" * (mysql.PORTION // 2)}] * 3
    assert [len(portion) for portion in mysql.portions(large)] == [2, 1]
    assert mysql.portions([]) == []


@pytest.mark.parametrize(
    "version",
    [(10, 7, 8), (10, 10, 5), (10, 11, 0), (10, 11, 4)],
    ids=lambda version: ".".join(map(str, version)),
)
def test_a_mariadb_that_misorders_version_7_uuids_is_refused(version: tuple[int, ...]) -> None:
    fault = server_fault(True, version)
    assert fault is not None
    assert "version 7 UUIDs" in fault[0]
    assert "10.11.5" in fault[1]


@pytest.mark.parametrize(
    ("is_mariadb", "version"),
    [(True, (10, 6, 0)), (True, (10, 10, 6)), (True, (10, 11, 5)), (True, (11, 4, 2)), (False, (8, 0, 36)),
     (False, (8, 4, 0))],
)  # fmt: skip
def test_right_servers_are_accepted(is_mariadb: bool, version: tuple[int, ...]) -> None:
    assert server_fault(is_mariadb, version) is None


@pytest.mark.parametrize(("is_mariadb", "version"), [(True, (10, 5, 9)), (False, (5, 7, 44))])
def test_servers_without_skip_locked_are_refused(
    is_mariadb: bool, version: tuple[int, ...]
) -> None:
    fault = server_fault(is_mariadb, version)
    assert fault is not None
    assert "too old" in fault[0]
