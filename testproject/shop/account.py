"""The demo's account: what provider, mail folder and shop have, against what they should have.

The expected side is a file that ``data/make_expected.py`` made from the orders alone.
"""

from __future__ import annotations

import csv
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from email.parser import BytesHeaderParser
from email.policy import default as unfolded
from pathlib import Path

from django.db.models import Count

from django_jobs.lifecycle import Status
from django_jobs.models import Job
from testproject.shop import provider
from testproject.shop.ledger import Kill, Repeats, Request, explain_repeats, read_ledger
from testproject.shop.mail import REPEATED_FILE
from testproject.shop.models import Parcel, Rejection
from testproject.shop.workflows import SLUG

SHOWN_PER_KIND = 6


@dataclass(frozen=True)
class Expected:
    charges: dict[str, Decimal]
    rejections: dict[int, str]

    @property
    def amount(self) -> Decimal:
        return sum(self.charges.values(), Decimal())


def read_expected(path: Path) -> Expected:
    """The expected account of an order file."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return Expected(
        {r["order_number"]: Decimal(r["amount"]) for r in rows if r["outcome"] == "charged"},
        {int(r["row"]): r["reason"] for r in rows if r["outcome"] == "rejected"},
    )


def read_mails(folder: Path) -> Counter[str]:
    """How many mail files there are for each order number."""
    parser = BytesHeaderParser(policy=unfolded)
    found: Counter[str] = Counter()
    for path in folder.glob("*.eml"):
        with path.open("rb") as file:
            found[str(parser.parse(file)["X-Order"])] += 1
    return found


def lines_of(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def write_rejected(path: Path) -> int:
    """The rejected rows with their reasons, as a file; how many there are."""
    rows = Rejection.objects.values_list("row", "reference", "reason", "detail")
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["row", "order_number", "reason", "detail"])
        writer.writerows(rows)
    return len(rows)


@dataclass
class Account:
    """Both sides, and where they differ."""

    expected: Expected
    requests: list[Request]
    mails: Counter[str]
    mails_repeated: int
    mails_greylisted: int
    parcels: set[str]
    rejections: dict[int, str]
    jobs: dict[str, int]
    job_errors: list[str]
    repeats: Repeats
    differences: list[str] = field(default_factory=list)

    @property
    def charges(self) -> list[Request]:
        return [request for request in self.requests if request.charged]

    @property
    def amount(self) -> Decimal:
        return Decimal(sum(request.cents for request in self.charges)) / 100

    def outcome(self, name: str) -> int:
        return sum(request.outcome == name for request in self.requests)


def draw_up(expected: Expected, data: Path, kills: Iterable[Kill]) -> Account:
    """Read everything there is and compare it."""
    requests = read_ledger(data / "ledger.sqlite3")
    jobs = Job.objects.filter(slug=SLUG)
    account = Account(
        expected=expected,
        requests=requests,
        mails=read_mails(data / "mails"),
        mails_repeated=lines_of(data / "mails" / REPEATED_FILE),
        mails_greylisted=len(list((data / "mails").glob("greylisted/*"))),
        parcels=set(Parcel.objects.values_list("order__reference", flat=True)),
        rejections=dict(Rejection.objects.values_list("row", "reason")),
        jobs=dict(jobs.order_by().values_list("status").annotate(Count("pk"))),
        job_errors=[
            f"job {job.pk} is {job.status}: {(job.error or {}).get('message', 'no error stored')}"
            for job in jobs.exclude(status=Status.COMPLETED)[: SHOWN_PER_KIND + 1]
        ],
        repeats=explain_repeats(requests, kills),
    )
    account.differences = list(differences(account))
    return account


def differences(account: Account) -> Iterable[str]:
    """One line for each thing that is not as expected; none when the account balances."""
    yield from _charge_differences(account)
    charged = account.expected.charges
    yield from _presence("mail", charged, account.mails)
    yield from _presence("parcel", charged, Counter(account.parcels))
    yield from _rejection_differences(account)
    yield from _some(account.job_errors, "jobs that did not complete")
    yield from _some(
        [
            f"order {request.order}: asked again for a charge it had an answer to"
            for request in account.repeats.unexplained
        ],
        "repeated requests that neither a lost answer nor a kill explains",
    )
    if conflicts := account.outcome(provider.CONFLICT):
        yield f"requests that used the key of another charge: {conflicts}"


def _charge_differences(account: Account) -> Iterable[str]:
    made: dict[str, list[Request]] = defaultdict(list)
    for request in account.charges:
        made[request.order].append(request)
    wanted = account.expected.charges
    yield from _some(
        [f"order {order}: not charged" for order in wanted if order not in made],
        "orders not charged",
    )
    yield from _some(
        [f"order {order}: charged though it is rejected" for order in made if order not in wanted],
        "rejected orders charged",
    )
    doubled = {order: charges for order, charges in made.items() if len(charges) > 1}
    surplus = [charge for charges in doubled.values() for charge in charges[1:]]
    # The provider had answered the charge before, so its step was complete.
    answered = sum(
        before.outcome == provider.CHARGED
        for charges in doubled.values()
        for before, _ in itertools.pairwise(charges)
    )
    yield from _some(
        [
            f"order {order}: charged {len(charges)} times, {_euros(charges[0].cents)} each"
            for order, charges in doubled.items()
        ],
        f"orders charged more than once (too much: {len(surplus)} charges,"
        f" {_euros(sum(charge.cents for charge in surplus))};"
        f" {answered} of them though the charge before had been answered)",
    )
    yield from _some(
        [
            f"order {order}: charged {_euros(charges[0].cents)} instead of {wanted[order]} EUR"
            for order, charges in made.items()
            if order in wanted and charges[0].cents != wanted[order] * 100
        ],
        "orders charged a wrong amount",
    )


def _presence(noun: str, wanted: Mapping[str, object], found: Counter[str]) -> Iterable[str]:
    wrong = [f"order {order}: no {noun}" for order in wanted if not found[order]]
    wrong += [f"order {order}: a {noun} too many" for order in found if order not in wanted]
    wrong += [f"order {order}: {n} {noun}s" for order, n in found.items() if n > 1]
    yield from _some(wrong, f"{noun}s missing or too many")


def _rejection_differences(account: Account) -> Iterable[str]:
    wanted, found = account.expected.rejections, account.rejections
    yield from _some(
        [
            f"row {row}: {found.get(row) or 'accepted'}, expected {wanted.get(row) or 'accepted'}"
            for row in sorted(wanted.keys() | found.keys())
            if wanted.get(row) != found.get(row)
        ],
        "rows judged otherwise than expected",
    )


def _some(lines: list[str], summary: str) -> Iterable[str]:
    """A summary and the first few of ``lines``, or nothing."""
    if lines:
        yield f"{summary}: {len(lines)}"
        yield from (f"  {line}" for line in lines[:SHOWN_PER_KIND])
        if len(lines) > SHOWN_PER_KIND:
            yield f"  … and {len(lines) - SHOWN_PER_KIND} more"


def _euros(cents: int) -> str:
    return f"{Decimal(cents) / 100:.2f} EUR"
