from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client

from tests.admin.browsing import chromium, open_page

__all__ = ["chromium", "open_page"]


@pytest.fixture
def login() -> Callable[..., Client]:
    """A client logged in as a staff user with these permissions of django_jobs, or as superuser."""

    def use(*codenames: str, superuser: bool = False, staff: bool = True) -> Client:
        name = "-".join(("user", *codenames, str(superuser), str(staff)))[:150]
        user = User.objects.filter(username=name).first() or User.objects.create_user(
            name, password="x", is_staff=staff, is_superuser=superuser
        )
        for codename in codenames:
            user.user_permissions.add(
                Permission.objects.get(content_type__app_label="django_jobs", codename=codename)
            )
        client = Client()
        client.force_login(user)
        return client

    return use


@pytest.fixture
def queries(django_assert_max_num_queries: Any) -> Any:
    """No page may need more than 15 statements."""
    return django_assert_max_num_queries(15)
