"""The parts of the demonstration that need no engine: its data, its provider, its kills."""

from __future__ import annotations

import csv
import os
import re
import smtplib
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from django.core.mail import EmailMessage
from hypothesis import given
from hypothesis import strategies as st

from testproject.shop import payments, processes, provider, rules
from testproject.shop.data import make_expected, make_orders
from testproject.shop.ledger import Kill, Request, explain_repeats, read_ledger
from testproject.shop.mail import KEY_HEADER, REPEATED_FILE, EmailBackend
from testproject.shop.processes import ProcessFailed, ProviderService, Service
from tests.support import ROOT

DATA = ROOT / "testproject" / "shop" / "data"


def shipped_rows() -> list[dict[str, str]]:
    with (DATA / "orders.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def run_script(*command: str) -> str:
    finished = subprocess.run(
        [sys.executable, *command], capture_output=True, cwd=DATA, env={**os.environ}
    )
    assert finished.returncode == 0, finished.stderr.decode()
    return finished.stdout.decode()


# The files


def test_the_generator_makes_the_shipped_orders_from_its_seed() -> None:
    assert make_orders.make_rows(2026, 3000) == shipped_rows()


def test_the_committed_account_is_what_the_script_makes_of_the_shipped_orders() -> None:
    made = run_script("make_expected.py", "orders.csv")
    assert made == (DATA / "expected.csv").read_text(encoding="utf-8")


def test_the_expected_account_is_made_without_the_product_and_without_the_shop() -> None:
    watch = (
        "import runpy, sys; sys.argv = ['make_expected.py', 'orders.csv'];"
        " runpy.run_path('make_expected.py', run_name='__main__');"
        " print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", watch], cwd=DATA, capture_output=True, text=True)
    modules = done.stderr.split()
    assert "django.core.validators" in modules, "nothing was imported at all"
    assert not [name for name in modules if name.split(".")[0] in ("django_jobs", "testproject")]


def test_the_shipped_orders_have_every_kind_of_defect() -> None:
    reasons = {line["reason"] for line in make_expected.expect(shipped_rows())}
    wanted = {"bad e-mail", "wrong total", "missing item", "duplicate order number"}
    assert reasons == {"", "unreadable amount", *wanted}


def test_every_address_in_the_shipped_orders_is_in_a_reserved_domain() -> None:
    addresses = [row["email"] for row in shipped_rows() if "@" in row["email"]]
    assert addresses
    reserved = re.compile(r".*@(|(mail\.|post\.|mail\.\.|post\.\.)?example(\.\.?(com|org))?)")
    assert [address for address in addresses if not reserved.fullmatch(address)] == []


# The rules, told twice


def shop_verdict(row: dict[str, str]) -> tuple[str, str]:
    """What import and workflow together make of a row: (amount, reason)."""
    try:
        shipping = rules.parse_amount(row["shipping"] or "0")
        total = rules.parse_amount(row["total"])
        rules.check(row["items"], row["email"], shipping, total)
    except rules.BadOrder as bad:
        return "", bad.reason
    return f"{total:.2f}", ""


amounts = st.one_of(
    st.decimals(0, 999, places=2).map(str),
    st.integers(0, 10**10).map(str),
    st.text(alphabet="0123456789.,-٣ ", max_size=6),
).map(str.strip)
entries = st.builds(
    "{}x {}@ {}".format,
    st.one_of(st.integers(0, 10**6).map(str), st.text(alphabet="12x٣ ", max_size=3)),
    st.sampled_from(["Tea ", "", "Mug @ home ", "2x Tin ", " "]),
    amounts,
)
items = st.one_of(
    st.lists(st.one_of(entries, entries, st.text(max_size=8)), max_size=3).map(" | ".join),
    st.just(""),
).map(lambda text: " ".join(text.split()))
emails = st.sampled_from(["a@example.com", "a.example.com", "a@@example.com", "", "ü@example.com"])


@given(items, emails, amounts, amounts)
def test_shop_and_account_judge_every_order_alike(
    wanted: str, email: str, shipping: str, total: str
) -> None:
    row = {
        "order_number": "1", "items": wanted, "email": email, "shipping": shipping, "total": total
    }  # fmt: skip
    assert shop_verdict(row) == make_expected.judge(row, set())


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9999)), min_size=1, max_size=4))
def test_an_order_whose_sum_is_right_is_charged(lines: list[tuple[int, int]]) -> None:
    total = sum(quantity * Decimal(cents) / 100 for quantity, cents in lines) + 3
    row = {
        "order_number": "1",
        "items": " | ".join(f"{n}x Tea @ {Decimal(cents) / 100:.2f}" for n, cents in lines),
        "email": "a@example.com",
        "shipping": "3",
        "total": f"{total:.2f}",
    }
    assert shop_verdict(row) == make_expected.judge(row, set()) == (f"{total:.2f}", "")


# The provider


@pytest.fixture
def payment_provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ProviderService]:
    service = ProviderService(tmp_path / "ledger", 7, tmp_path / "log", {**os.environ})
    with service:
        monkeypatch.setenv("SHOP_PROVIDER_URL", service.url)
        yield service


def charge_patiently(key: str, order: str) -> payments.Charge:
    for _ in range(provider.FAILURES_PER_ORDER):
        try:
            return payments.charge(key, order, Decimal("9.90"))
        except payments.ProviderUnavailable:
            continue
    return payments.charge(key, order, Decimal("9.90"))


def test_the_provider_charges_once_per_key_however_often_it_is_asked(
    payment_provider: ProviderService, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(4) as pool:
        charges = list(pool.map(charge_patiently, ["key"] * 20, ["T-1"] * 20))
    assert len({charge.id for charge in charges}) == 1
    ledger = read_ledger(tmp_path / "ledger")
    assert sum(request.charged for request in ledger) == 1
    assert sum(request.outcome == provider.REPEATED for request in ledger) >= 19


def test_a_charge_whose_answer_was_lost_is_found_by_its_key(
    payment_provider: ProviderService, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(8) as pool:
        names = [f"T-{number}" for number in range(300)]
        charges = list(pool.map(charge_patiently, names, names))
    ledger = read_ledger(tmp_path / "ledger")
    lost = [request for request in ledger if request.outcome == provider.LOST]
    assert lost, "the seed loses no answer"
    assert sum(charge.repeated for charge in charges) == len(lost)
    assert sum(request.charged for request in ledger) == 300


def test_a_key_of_another_charge_is_refused_for_good(payment_provider: ProviderService) -> None:
    charge_patiently("key", "T-1")
    with pytest.raises(payments.ChargeRefused):
        payments.charge("key", "T-2", Decimal("9.90"))


def test_the_same_seed_fails_the_same_requests_whatever_the_keys_and_the_time(
    tmp_path: Path,
) -> None:
    def outcomes(name: str, seed: int, order: list[int]) -> dict[str, list[str]]:
        ledger = provider.Ledger(tmp_path / name, seed)
        for number in order:
            for _ in range(4):
                ledger.handle(f"{name}-{number}", f"T-{number}", 990)
        found: dict[str, list[str]] = {}
        for request in read_ledger(tmp_path / name):
            found.setdefault(request.order, []).append(request.outcome)
        return found

    upwards = outcomes("first", 1, list(range(80)))
    assert upwards == outcomes("second", 1, list(reversed(range(80))))
    assert upwards != outcomes("third", 2, list(range(80)))


def test_no_seed_turns_an_order_away_for_ever(tmp_path: Path) -> None:
    ledger = provider.Ledger(tmp_path / "ledger", 3)
    for number in range(400):
        for _ in range(provider.FAILURES_PER_ORDER + 1):
            answer = ledger.handle(f"k{number}", f"T-{number}", 100)
        assert answer.status == 200


# What excuses a repeated request


def request(at: float, outcome: str, key: str = "k") -> Request:
    return Request(at, key, f"order of {key}", 100, outcome)


def kill(at: float, hands: int = 8) -> Kill:
    return Kill("one worker child", [1], at, hands, in_flight=1)


def test_a_lost_answer_excuses_one_repeat() -> None:
    first = [request(1, provider.LOST), request(2, provider.REPEATED)]
    assert explain_repeats(first, []).unexplained == []
    again = explain_repeats([*first, request(3, provider.REPEATED)], [])
    assert (again.after_lost_answer, len(again.unexplained)) == (1, 1)


def test_a_kill_excuses_only_repeats_around_it_and_no_more_than_it_interrupted() -> None:
    ledger = [request(1, provider.CHARGED), request(5, provider.REPEATED)]
    assert explain_repeats(ledger, [kill(3)]).after_kill == 1
    assert len(explain_repeats(ledger, [kill(6)]).unexplained) == 1
    assert len(explain_repeats(ledger, [kill(-60)]).unexplained) == 1
    two = [*ledger, request(2, provider.CHARGED, "other"), request(6, provider.REPEATED, "other")]
    found = explain_repeats(two, [kill(3, hands=1)])
    assert (found.after_kill, len(found.unexplained), found.total) == (1, 1, 2)


# Mail


def message(key: str, order: str = "T/1 ä") -> EmailMessage:
    headers = {KEY_HEADER: key, "X-Order": order, "Message-ID": "<1@shop.example.com>"}
    return EmailMessage("Hello", "…", "shop@example.com", ["a@example.com"], headers=headers)


def test_a_mail_sent_again_under_its_key_stays_one_file_and_is_counted(tmp_path: Path) -> None:
    outbox = EmailBackend(file_path=tmp_path, seed=1)
    for key in ("one", "one", "two"):
        outbox.send_messages([message(key)])
    assert len(list(tmp_path.glob("*.eml"))) == 2
    assert len((tmp_path / REPEATED_FILE).read_text().splitlines()) == 1
    assert not list(tmp_path.glob("*.part"))


def test_a_greylisted_mail_is_turned_away_once(tmp_path: Path) -> None:
    outbox, refused = EmailBackend(file_path=tmp_path, seed=1), 0
    for number in range(100):
        mail = message(f"k{number}", f"T-{number}")
        try:
            outbox.send_messages([mail])
        except smtplib.SMTPResponseException as error:
            assert error.smtp_code == 451
            refused += 1
            outbox.send_messages([mail])
    assert refused > 0
    assert len(list(tmp_path.glob("*.eml"))) == 100


# Processes

TREE = """
import subprocess, sys, time
depth = int(sys.argv[1])
if depth:
    subprocess.Popen([sys.executable, __file__, str(depth - 1)])
print(depth, flush=True)
time.sleep(600)
"""


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Service]:
    """A process with a child and a grandchild."""
    (tmp_path / "tree.py").write_text(TREE)
    command = [sys.executable, str(tmp_path / "tree.py"), "2"]
    with Service("tree", command, tmp_path / "log", {**os.environ}) as service:
        deadline = time.monotonic() + 30
        while len((tmp_path / "log").read_text().split()) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield service


def test_a_whole_tree_is_killed_and_nothing_of_it_lives_on(tree: Service) -> None:
    family = processes.family(tree.pid)
    assert family[0].pid == tree.pid
    assert len(family) == 3
    killed = tree.kill_tree()
    assert sorted(killed) == sorted(entry.pid for entry in family)
    processes.wait_until_gone(killed)
    assert processes.family(tree.pid) == []


def test_orphans_of_a_dead_leader_are_found_by_their_process_group(tree: Service) -> None:
    leader = tree.pid
    processes.kill(leader)
    processes.wait_until_gone([leader])
    assert len(processes.family(leader)) == 2
    assert len(tree.kill_tree()) == 2


def test_ps_and_proc_tell_the_same_family(tree: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("this system has no /proc; ps is what the demo uses here")
    from_proc = [entry.pid for entry in processes.family(tree.pid)]
    monkeypatch.setattr(processes, "living", processes._from_ps)
    assert [entry.pid for entry in processes.family(tree.pid)] == from_proc


def test_a_service_that_ended_by_itself_is_reported_with_the_end_of_its_log(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no luck today')"]
    service = Service("worker", command, tmp_path / "log", {**os.environ})
    service.start()
    assert service.process is not None
    service.process.wait()
    with pytest.raises(ProcessFailed, match="no luck today"):
        service.check()


def test_the_provider_ends_when_its_demo_does(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path;"
        "from testproject.shop.processes import ProviderService;"
        "folder = Path(sys.argv[1]);"
        "service = ProviderService(folder / 'ledger', 1, folder / 'log', {**os.environ});"
        "service.start(); print(service.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    provider = int(done.stdout)
    processes.wait_until_gone([provider], 60)
    assert provider not in processes.living()
