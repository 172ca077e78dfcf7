from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def test_case(request: pytest.FixtureRequest) -> Any:
    """Which kind of Django test case this is run as; see helpers.IN_BOTH_TEST_CASES."""
    return request.param
