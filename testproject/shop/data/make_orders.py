"""Write the shipped order file: ``python make_orders.py [--seed N] [--orders N] > orders.csv``.

People, products and orders are invented; the same seed always gives the same bytes. About one
order in twenty-five has a defect of the kind that order exports really have.
"""

from __future__ import annotations

import argparse
import csv
import random
import sys
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal

COLUMNS = [
    "order_number",
    "ordered_at",
    "customer",
    "email",
    "country",
    "items",
    "shipping",
    "total",
]

PRODUCTS = {
    "Sencha green tea, 100 g": "8.90",
    "Gyokuro green tea, 50 g": "19.50",
    "Genmaicha with roasted rice, 100 g": "7.40",
    "Matcha, ceremonial, 30 g": "24.00",
    "Matcha, kitchen grade, 100 g": "16.80",
    "Assam second flush, 250 g": "14.20",
    "Darjeeling first flush, 100 g": "17.90",
    "Ceylon orange pekoe, 250 g": "12.60",
    "Earl Grey with bergamot, 100 g": "6.90",
    "Lapsang Souchong, smoked, 100 g": "9.80",
    "Keemun black tea, 100 g": "10.50",
    "Tie Guan Yin oolong, 50 g": "13.70",
    "Milk oolong, 50 g": "11.90",
    "White peony, 50 g": "12.40",
    "Pu-erh cake, 2019, 357 g": "48.00",
    "Rooibos with vanilla, 200 g": "8.20",
    "Peppermint, whole leaf, 80 g": "5.40",
    "Chamomile flowers, 60 g": "5.90",
    "Lemon verbena, 40 g": "6.30",
    "Ginger and lemongrass, 120 g": "7.10",
    "Stoneware teapot, 0.8 l": "42.00",
    "Glass teapot with strainer, 1 l": "29.50",
    "Cast-iron teapot, black, 0.9 l": "64.00",
    "Gaiwan, white porcelain": "18.50",
    "Tea bowl, celadon glaze": "22.00",
    "Mug, speckled, 300 ml": "14.50",
    "Double-walled glass, set of 2": "17.00",
    "Bamboo whisk": "13.90",
    "Bamboo scoop": "4.20",
    "Whisk holder, ceramic": "8.60",
    "Paper filters, 100 pieces": "3.90",
    "Stainless steel strainer": "9.40",
    "Tea tin, airtight, 150 g": "7.80",
    "Gooseneck kettle, 1 l": "59.00",
    "Tea timer, three sands": "12.80",
    "Tasting set, six teas": "27.50",
}

SHIPPING = {
    "DE": "3.90",
    "AT": "5.90",
    "CH": "8.90",
    "NL": "5.90",
    "FR": "6.90",
    "IT": "6.90",
    "ES": "7.90",
    "PL": "5.90",
    "SE": "7.90",
    "GB": "9.90",
}
COUNTRY_WEIGHTS = [40, 10, 9, 8, 8, 6, 5, 5, 4, 5]
FREE_SHIPPING_FROM = Decimal("75.00")

FIRST_NAMES = (
    "Ada Agnes Aleksander Amira Anna Anton Beatriz Björn Camille Carla Chiara Clara Daniel Dmitri "
    "Elena Elif Emil Emma Fatima Felix Finn Frida Greta Hanna Henri Hugo Ida Ines Irina Jakub Jana "
    "Jeroen Joana Johan Jonas Julia Kasia Klaas Lars Laura Leon Lina Louis Lucía Maja Marco Maria "
    "Marta Mateo Milan Mina Nadia Niklas Nina Noah Nora Olga Oskar Paul Pauline Piotr Rafael Rosa "
    "Samira Sara Sofia Stefan Theo Tilda Tomasz Valentina Vera Viktor Yusuf Zoë"
).split()
LAST_NAMES = (
    "Achterberg Almeida Andersson Bauer Becker Bianchi Blanc Brandt Castillo Costa Dąbrowski "
    "Dubois Eriksson Esposito Fischer Fontaine Fuchs García Gruber Haas Hartmann Hofer Huber "
    "Jansen Janssens Kaya Keller Klein Kowalska Krüger Lambert Lang Lehmann Lindqvist Lombardi "
    "López Maier Marchetti Martín Meyer Moreau Müller Navarro Nilsson Nowak Öztürk Peeters Pereira "
    "Petit Ricci Rossi Roth Santos Schmid Schneider Schubert Silva Steiner Suter Vermeulen Visser "
    "Vogel Wagner Walsh Weber Whitfield Winkler Wiśniewska Yılmaz Zimmermann"
).split()
MAIL_DOMAINS = ["example.com", "example.org", "mail.example.com", "post.example.org"]

Row = dict[str, str]


def ascii_only(name: str) -> str:
    """``name`` as the local part of an address would spell it."""
    for letter, spelled in {
        "ä": "ae",
        "ö": "oe",
        "ü": "ue",
        "Ö": "Oe",
        "ß": "ss",
        "ı": "i",
    }.items():
        name = name.replace(letter, spelled)
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return plain.lower()


def make_order(dice: random.Random, number: int, moment: datetime) -> Row:
    """One order without a defect."""
    first, last = dice.choice(FIRST_NAMES), dice.choice(LAST_NAMES)
    separator = dice.choice([".", ".", "-", ""])
    suffix = dice.choice(["", "", "", str(dice.randint(2, 99))])
    country = dice.choices(list(SHIPPING), COUNTRY_WEIGHTS)[0]
    chosen = dice.sample(sorted(PRODUCTS), dice.choices([1, 2, 3, 4, 5], [34, 30, 20, 11, 5])[0])
    lines = [(dice.choices([1, 2, 3, 4], [70, 20, 7, 3])[0], name) for name in chosen]
    goods = sum((quantity * Decimal(PRODUCTS[name]) for quantity, name in lines), Decimal())
    shipping = Decimal("0.00") if goods >= FREE_SHIPPING_FROM else Decimal(SHIPPING[country])
    local = f"{ascii_only(first)}{separator}{ascii_only(last)}{suffix}"
    return {
        "order_number": f"T-{number}",
        "ordered_at": moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "customer": f"{first} {last}",
        "email": f"{local}@{dice.choice(MAIL_DOMAINS)}",
        "country": country,
        "items": " | ".join(f"{quantity}x {name} @ {PRODUCTS[name]}" for quantity, name in lines),
        "shipping": f"{shipping:.2f}",
        "total": f"{goods + shipping:.2f}",
    }


def spoil_email(dice: random.Random, row: Row) -> None:
    """What typing on a telephone does to an address."""
    local, domain = row["email"].split("@")
    row["email"] = dice.choice(
        [
            f"{local}.{domain}",
            f"{local}@@{domain}",
            f"{local}@{domain.split('.')[-2]}",
            f"{local}@{domain.replace('.', '..', 1)}",
            f"{local[:3]} {local[3:]}@{domain}",
            f"{local}@",
            "",
        ]
    )


def spoil_total(dice: random.Random, row: Row) -> None:
    """Two digits swapped, a forgotten shipping fee, or a discount nobody wrote down."""
    total, shipping = Decimal(row["total"]), Decimal(row["shipping"])
    digits = row["total"].replace(".", "")
    swapped = Decimal(digits[:-2] + digits[-1] + digits[-2]) / 100
    choices = [total - Decimal("5.00"), total * 2, total + Decimal("0.10")]
    if swapped != total:
        choices.append(swapped)
    if shipping:
        choices.append(total - shipping)
    row["total"] = f"{dice.choice(choices):.2f}"


def spoil_items(dice: random.Random, row: Row) -> None:
    """An item whose name is gone, or no item at all; the total still has its price."""
    lines = row["items"].split(" | ")
    if dice.random() < 0.4:
        row["items"] = ""
        return
    place = dice.randrange(len(lines))
    quantity, price = lines[place].split("x ", 1)[0], lines[place].rsplit(" @ ", 1)[1]
    lines[place] = f"{quantity}x  @ {price}"
    row["items"] = " | ".join(lines)


def spoil_amount(dice: random.Random, row: Row) -> None:
    """A cell that a spreadsheet has turned into something else."""
    row["total"] = dice.choice(["#REF!", "n/a", row["total"].replace(".", ","), ""])


#: What can be wrong with an order, and in how many of ten thousand it is.
DEFECTS: list[tuple[int, Callable[[random.Random, Row], None]]] = [
    (140, spoil_email),
    (110, spoil_total),
    (90, spoil_items),
    (20, spoil_amount),
]
DOUBLED = 25


def make_rows(seed: int, count: int) -> list[Row]:
    """``count`` orders in the order they came in, a few of them exported twice."""
    dice = random.Random(seed)
    moment = datetime(2026, 3, 1, 6, 12, tzinfo=UTC)
    number = 20_418
    rows: list[Row] = []
    for _ in range(count):
        moment += timedelta(seconds=dice.expovariate(1 / 700))
        number += dice.choices([1, 2, 3], [92, 6, 2])[0]
        row = make_order(dice, number, moment)
        throw = dice.randrange(10_000)
        for share, spoil in DEFECTS:
            if throw < share:
                spoil(dice, row)
                break
            throw -= share
        rows.append(row)
        if dice.randrange(10_000) < DOUBLED:
            rows.append(dict(dice.choice(rows[-40:])))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--orders", type=int, default=3000)
    options = parser.parse_args()
    sys.stdout.reconfigure(encoding="utf-8", newline="")  # type: ignore[union-attr]
    writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(make_rows(options.seed, options.orders))


if __name__ == "__main__":
    main()
