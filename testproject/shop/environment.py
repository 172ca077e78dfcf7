"""What the demo tells its processes: they get it through environment variables.

``SHOP_DATA`` folder of ledger, mails and logs; ``SHOP_PROVIDER_URL`` where the payment provider
listens; ``SHOP_SEED`` picks who fails when; ``SHOP_SABOTAGE`` see :mod:`testproject.shop.sabotage`.
"""

from __future__ import annotations

import os
from pathlib import Path

from django.conf import settings


def data_folder() -> Path:
    return Path(os.environ.get("SHOP_DATA") or Path(settings.BASE_DIR) / "demo-data")


def provider_url() -> str:
    return os.environ.get("SHOP_PROVIDER_URL", "http://127.0.0.1:8090")


def seed() -> int:
    return int(os.environ.get("SHOP_SEED", "1"))


def sabotage() -> str:
    return os.environ.get("SHOP_SABOTAGE", "")
