"""From the order file to orders and their jobs, a few hundred rows per transaction."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from django.db import transaction

from testproject.shop import rules
from testproject.shop.models import Order, Rejection
from testproject.shop.workflows import process_order

COLUMNS = ("order_number", "email", "items", "total")
OPTIONAL = ("customer", "country", "shipping")
NAMES = COLUMNS + OPTIONAL
ROWS_PER_TRANSACTION = 200

Cells = dict[str, str]


class BadFile(ValueError):
    """The file is no order file at all."""


@dataclass
class Imported:
    """What one import did."""

    rows: int = 0
    new_orders: int = 0
    new_jobs: int = 0
    known_jobs: int = 0
    rejected: int = 0


def read_rows(path: Path) -> Iterator[tuple[int, Cells]]:
    """(row number, cells) of a CSV file with a header; :class:`BadFile` names missing columns."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(line.replace("\0", "") for line in file)
            if missing := set(COLUMNS) - set(reader.fieldnames or ()):
                raise BadFile(
                    f"{path} has no column {', '.join(sorted(missing))}. An order file is a CSV"
                    f" with a header: {', '.join(COLUMNS)}, and if you like"
                    f" {', '.join(OPTIONAL)}."
                )
            for number, row in enumerate(reader, start=1):
                # A cell may hold line breaks, which no mail header can.
                yield number, {n: " ".join((row.get(n) or "").split()) for n in NAMES}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadFile(f"{path} cannot be read: {error}") from error


def import_file(path: Path, show: Callable[[int], None] = lambda rows: None) -> Imported:
    """Store every row and enqueue a workflow for every order.

    Both happen in one transaction per chunk: an order without its job, or a job without its
    order, cannot exist. Importing a file again finds the orders by their number and the jobs by
    their idempotency key.
    """
    report = Imported()
    rows = read_rows(path)
    seen: dict[str, int] = {}
    while chunk := list(itertools.islice(rows, ROWS_PER_TRANSACTION)):
        with transaction.atomic():
            _import_chunk(chunk, seen, report)
        show(report.rows)
    return report


def _import_chunk(chunk: list[tuple[int, Cells]], seen: dict[str, int], report: Imported) -> None:
    orders: dict[str, Order] = {}
    rejections = []
    for number, cells in chunk:
        try:
            orders[cells["order_number"]] = _order(number, cells, seen)
        except rules.BadOrder as bad:
            reference = cells["order_number"]
            rejections.append(
                Rejection(row=number, reference=reference, reason=bad.reason, detail=bad.detail)
            )
    stored = Order.objects.filter(reference__in=orders)
    known = set(stored.values_list("reference", flat=True))
    fresh = [order for reference, order in orders.items() if reference not in known]
    Rejection.objects.bulk_create(rejections, ignore_conflicts=True)
    Order.objects.bulk_create(fresh)
    report.rows += len(chunk)
    report.rejected += len(rejections)
    report.new_orders += len(fresh)
    _enqueue(stored.all(), report)


def _order(number: int, cells: Cells, seen: dict[str, int]) -> Order:
    """The order of a row; ``seen`` maps the file's order numbers so far to their rows."""
    reference = cells["order_number"]
    if not reference:
        raise rules.BadOrder("no order number")
    if seen.setdefault(reference, number) != number:
        raise rules.BadOrder("duplicate order number", f"first in row {seen[reference]}")
    return Order(
        reference=reference,
        row=number,
        customer=cells["customer"],
        email=cells["email"],
        country=cells["country"],
        items=cells["items"],
        shipping=rules.parse_amount(cells["shipping"] or "0"),
        total=rules.parse_amount(cells["total"]),
    )


def _enqueue(orders: Iterable[Order], report: Imported) -> None:
    linked = []
    for order in orders:
        job = process_order.using(idempotency_key=f"order:{order.pk}").enqueue(order_id=order.pk)
        if job.created:
            report.new_jobs += 1
        else:
            report.known_jobs += 1
        if order.job_id != job.pk:
            order.job_id = job.pk
            linked.append(order)
    Order.objects.bulk_update(linked, ["job_id"])
