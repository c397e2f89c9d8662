"""
One broker, two providers and two workers for all tests of the application in workers/ that leave them whole.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from tests.support.articles import CONCURRENCY, RAMP, THRESHOLD, WORKERS, Articles


@pytest.fixture(scope="session")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Articles]:
    """
    The stage.
    """
    folder, prefix = tmp_path_factory.mktemp("articles"), f"test-{uuid.uuid4().hex[:12]}"
    with Articles(folder, prefix, failure_threshold=THRESHOLD, ramp_initial_rate=RAMP) as made:
        for _ in range(WORKERS):
            made.worker(concurrency=CONCURRENCY)
        yield made


@pytest.fixture
def articles(lasting: Articles) -> Articles:
    """
    That stage, as new.
    """
    lasting.begin()
    return lasting
