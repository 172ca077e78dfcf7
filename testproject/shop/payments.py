"""The shop's side of a payment: one POST to the provider."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from decimal import Decimal

from testproject.shop import environment

TIMEOUT_SECONDS = 10
# The provider is on this machine: no proxy of the environment stands between.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ProviderUnavailable(Exception):
    """The provider did not answer, or asked to come again: the charge may or may not exist."""


class ChargeRefused(Exception):
    """The provider will never accept this request."""


@dataclass(frozen=True)
class Charge:
    id: str
    amount: Decimal
    repeated: bool


def charge(key: str, order: str, amount: Decimal) -> Charge:
    """Charge ``amount`` once per ``key``, whoever asks and however often."""
    cents = int(amount * 100)
    request = urllib.request.Request(
        f"{environment.provider_url()}/charges",
        data=json.dumps({"order": order, "cents": cents}).encode(),
        headers={"Idempotency-Key": key, "Content-Type": "application/json"},
    )
    try:
        with _opener.open(request, timeout=TIMEOUT_SECONDS) as response:
            answer = json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            text = error.read().decode(errors="replace")
        if error.code >= 500:
            raise ProviderUnavailable(f"{error.code} for order {order}") from error
        raise ChargeRefused(f"{error.code} for order {order}: {text}") from error
    except (OSError, ValueError) as error:
        raise ProviderUnavailable(f"no answer for order {order}: {error}") from error
    return Charge(answer["id"], Decimal(answer["cents"]) / 100, answer["repeated"])
