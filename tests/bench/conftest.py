"""What tests that draw need."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def fonts() -> None:
    """matplotlib keeps the fonts open that it has drawn with; opened before a test, they are not what the test left."""
    from bench.html_harness import Page, plain

    Page.of(plain())
