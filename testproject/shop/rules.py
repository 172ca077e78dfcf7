"""What an order must be: pure functions, used by the import and by the workflow's first step."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from django.core.exceptions import ValidationError
from django.core.validators import validate_email

AMOUNT = re.compile(r"\d{1,9}(\.\d\d)?", re.ASCII)
ITEM = re.compile(r"(?P<quantity>\d{1,6})x (?P<name>.*)@ (?P<price>\d{1,9}(\.\d\d)?)", re.ASCII)


class BadOrder(ValueError):
    """The order cannot be charged; ``reason`` is one of a few, ``detail`` is for people."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Item:
    quantity: int
    name: str
    price: Decimal


def parse_amount(text: str) -> Decimal:
    """``12`` or ``12.50``; :class:`BadOrder` for anything else."""
    if not AMOUNT.fullmatch(text):
        raise BadOrder("unreadable amount", repr(text))
    return Decimal(text)


def parse_items(text: str) -> list[Item]:
    """``2x Mug @ 9.90 | 1x Tea @ 3.00``; :class:`BadOrder` where something is missing."""
    if not text.strip():
        raise BadOrder("missing item", "no items at all")
    items = []
    for entry in text.split("|"):
        match = ITEM.fullmatch(entry.strip())
        if match is None or int(match["quantity"]) == 0:
            raise BadOrder("unreadable items", repr(entry.strip()))
        items.append(Item(int(match["quantity"]), match["name"].strip(), Decimal(match["price"])))
    if nameless := [item for item in items if not item.name]:
        raise BadOrder("missing item", f"{nameless[0].quantity} pieces at {nameless[0].price}")
    return items


def check(items: str, email: str, shipping: Decimal, total: Decimal) -> int:
    """The number of pieces of a good order; :class:`BadOrder` names the first defect."""
    wanted = parse_items(items)
    try:
        validate_email(email)
    except ValidationError as error:
        raise BadOrder("bad e-mail", repr(email)) from error
    worth = sum((item.quantity * item.price for item in wanted), Decimal()) + shipping
    if worth != total:
        raise BadOrder("wrong total", f"{total} instead of {worth}")
    return sum(item.quantity for item in wanted)
