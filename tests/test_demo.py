"""The demonstration itself, with fewer orders: real processes, real kills, a real account."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import embedded_pg
from tests.support import ROOT

ORDERS = 260
SHIPPED = ROOT / "testproject" / "shop" / "data" / "orders.csv"
LIMIT_SECONDS = 240


@dataclass
class Demo:
    """A demo with a database, a data folder and an order file of its own."""

    folder: Path
    env: Mapping[str, str]
    orders: Path
    wrapper: tuple[str, ...] = ()

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*self.wrapper, sys.executable, str(ROOT / "manage.py"), "demo"]
        command += ["--data", str(self.folder), "--orders", str(self.orders), *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=LIMIT_SECONDS
        )

    def charges(self) -> list[tuple[str, int]]:
        """(order number, how many charges) as the provider's own ledger has them."""
        with closing(sqlite3.connect(self.folder / "ledger.sqlite3")) as book:
            return book.execute(
                "SELECT order_number, count(*) FROM request WHERE outcome LIKE 'charged%'"
                " GROUP BY order_number"
            ).fetchall()


def make_demo(folder: Path, database_url: str = "", wrapper: tuple[str, ...] = ()) -> Demo:
    orders = folder / "orders.csv"
    lines = SHIPPED.read_text(encoding="utf-8").splitlines(keepends=True)
    orders.write_text("".join(lines[: ORDERS + 1]), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "TEST_DB"}
    environment |= {
        "DJANGO_SETTINGS_MODULE": "testproject.settings",
        "DATABASE_URL": database_url,
        "PYTHONUNBUFFERED": "1",
    }
    return Demo(folder / "data", environment, orders, wrapper)


@pytest.fixture
def demo(tmp_path: Path) -> Demo:
    return make_demo(tmp_path, f"sqlite:///{tmp_path / 'demo.sqlite3'}")


def number(pattern: str, output: str) -> int:
    found = re.search(pattern, output, re.M)
    assert found, f"{pattern!r} is not in:\n{output}"
    return int(found[1])


def assert_balanced_after_two_kills(demo: Demo, run: subprocess.CompletedProcess[str]) -> None:
    assert run.returncode == 0, run.stdout + run.stderr
    assert "The account balances" in run.stdout
    assert len(re.findall(r"^  kill -9 of .* orders in flight;$", run.stdout, re.M)) == 2
    assert "(not seen)" not in run.stdout
    charges = demo.charges()
    assert charges
    assert [order for order, count in charges if count != 1] == []
    assert number(r"new charges in this run: (\d+)", run.stdout) == len(charges)
    assert len(list((demo.folder / "mails").glob("*.eml"))) == len(charges)
    rejected = (demo.folder / "rejected.csv").read_text().splitlines()
    assert len(rejected) - 1 == ORDERS - len(charges)


def test_every_order_is_charged_once_though_child_and_worker_are_killed(demo: Demo) -> None:
    assert_balanced_after_two_kills(demo, demo.run("--seed", "5"))
    before = demo.charges()

    second = demo.run()
    assert second.returncode == 0, second.stdout + second.stderr
    assert "new charges in this run: 0" in second.stdout
    assert "0 jobs enqueued" in second.stdout
    assert demo.charges() == before

    other = demo.run("--seed", "6")
    assert other.returncode == 1
    assert "--fresh" in other.stderr


@pytest.mark.skipif(embedded_pg.find_bindir() is None, reason="no PostgreSQL binaries here")
def test_the_account_balances_on_postgresql(tmp_path: Path) -> None:
    postgresql = (sys.executable, "-m", "tests.embedded_pg", "--")
    demo = make_demo(tmp_path, wrapper=postgresql)
    assert_balanced_after_two_kills(demo, demo.run("--seed", "2"))


def test_without_replay_customers_are_charged_twice_and_the_account_says_so(demo: Demo) -> None:
    run = demo.run("--sabotage", "skip-replay")
    assert run.returncode == 1, run.stdout + run.stderr
    assert "The account does not balance" in run.stderr
    doubled = number(r"DIFFERENCE  orders charged more than once .*: (\d+)$", run.stdout)
    assert doubled == sum(count > 1 for _, count in demo.charges()) > 0
    # Not only because an answer was lost: steps that were complete have run again.
    assert number(r"(\d+) of them though the charge before had been answered", run.stdout) > 0


def test_a_charge_that_vanishes_from_the_ledger_is_a_difference(demo: Demo) -> None:
    lines = demo.orders.read_text(encoding="utf-8").splitlines(keepends=True)
    demo.orders.write_text("".join(lines[:11]), encoding="utf-8")
    assert demo.run().returncode == 0
    with closing(sqlite3.connect(demo.folder / "ledger.sqlite3")) as book, book:
        [victim] = book.execute("SELECT max(order_number) FROM request").fetchone()
        book.execute("DELETE FROM request WHERE order_number = ?", [victim])
    again = demo.run()
    assert again.returncode == 1
    assert f"order {victim}: not charged" in again.stdout


def test_a_ledger_that_knows_nothing_of_the_orders_in_the_database_is_refused(demo: Demo) -> None:
    lines = demo.orders.read_text(encoding="utf-8").splitlines(keepends=True)
    demo.orders.write_text("".join(lines[:4]), encoding="utf-8")
    assert demo.run().returncode == 0
    demo.folder.rename(demo.folder.with_name("elsewhere"))
    second = demo.run()
    assert second.returncode == 1
    assert "--fresh" in second.stderr
    assert demo.run("--fresh").returncode == 0


def test_a_file_that_holds_no_orders_is_refused_with_what_is_missing(demo: Demo) -> None:
    demo.orders.write_text("number,price\n1,2\n")
    run = demo.run()
    assert run.returncode == 1
    assert "has no column email, items, order_number, total" in run.stderr
    assert not (demo.folder / "state.json").exists()
