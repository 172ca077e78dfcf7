"""Write what an order file ought to cost: ``python make_expected.py orders.csv > expected.csv``.

This is the other side of the demo's account. It knows the rules of the file, and neither the
shop nor its jobs: it imports nothing of them. One line per row of the order file says whether
the row is charged, how much, or why it is rejected. Of several defects the first one counts:

1. no order number
2. duplicate order number (of a row above)
3. unreadable amount (shipping or total; an empty shipping is 0)
4. missing item (no items, or an item without a name)
5. unreadable items (anything else that is not ``2x Name @ 9.90 | 1x Name @ 3.00``)
6. bad e-mail
7. wrong total (not the sum of quantity times price, plus shipping)
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal

from django.core.exceptions import ValidationError
from django.core.validators import validate_email

Line = dict[str, str | int]


def amount(text: str) -> int | None:
    """Cents, or None where ``text`` is no amount like 12 or 12.50, or has over nine digits."""
    whole, dot, cents = text.partition(".")
    if not 1 <= len(whole) <= 9 or (dot and len(cents) != 2):
        return None
    if not is_number(whole + cents):
        return None
    return int(whole) * 100 + int(cents or "0")


def is_number(text: str) -> bool:
    """Whether ``text`` is nothing but the digits 0 to 9."""
    return text.isascii() and text.isdecimal()


def items_worth(text: str) -> int | str:
    """Cents of all items, or the defect."""
    if not text.strip():
        return "missing item"
    worth, nameless = 0, False
    for entry in text.split("|"):
        quantity, has_x, rest = entry.strip().partition("x ")
        name, has_at, price = rest.rpartition("@ ")
        cents = amount(price.strip())
        if not (has_x and has_at and is_number(quantity) and len(quantity) <= 6):
            return "unreadable items"
        if int(quantity) == 0 or cents is None:
            return "unreadable items"
        nameless = nameless or not name.strip()
        worth += int(quantity) * cents
    return "missing item" if nameless else worth


def judge(row: Mapping[str, str], seen: set[str]) -> tuple[str, str]:
    """(amount to charge, "") or ("", reason)."""
    number = row["order_number"]
    if not number:
        return "", "no order number"
    if number in seen:
        return "", "duplicate order number"
    seen.add(number)
    shipping, total = amount(row["shipping"] or "0"), amount(row["total"])
    if shipping is None or total is None:
        return "", "unreadable amount"
    worth = items_worth(row["items"])
    if isinstance(worth, str):
        return "", worth
    try:
        validate_email(row["email"])
    except ValidationError:
        return "", "bad e-mail"
    if worth + shipping != total:
        return "", "wrong total"
    return f"{Decimal(total) / 100:.2f}", ""


def expect(rows: Iterable[Mapping[str, str | None]]) -> Iterator[Line]:
    """The verdict on each row; a file without a column of that name has empty cells there."""
    seen: set[str] = set()
    wanted = ("order_number", "email", "items", "shipping", "total")
    for place, row in enumerate(rows, start=1):
        cells = {name: " ".join((row.get(name) or "").split()) for name in wanted}
        charge, reason = judge(cells, seen)
        yield {
            "row": place,
            "order_number": cells["order_number"],
            "outcome": "rejected" if reason else "charged",
            "amount": charge,
            "reason": reason,
        }


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("Name the order file: python make_expected.py orders.csv > expected.csv")
    sys.stdout.reconfigure(encoding="utf-8", newline="")  # type: ignore[union-attr]
    columns = ["row", "order_number", "outcome", "amount", "reason"]
    writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
    writer.writeheader()
    with open(sys.argv[1], encoding="utf-8-sig", newline="") as file:
        writer.writerows(expect(csv.DictReader(line.replace("\0", "") for line in file)))


if __name__ == "__main__":
    main()
