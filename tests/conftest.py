"""
Real servers for every test that needs one.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest
import redis
from celery import signals

from omni_tasks.embedded import EmbeddedServer, EmbeddedServerError, start_server
from omni_tasks.manager import use_manager


@pytest.fixture(scope="session")
def redis_server() -> Iterator[EmbeddedServer]:
    """
    A server of the tests' own; without one the tests are skipped on a laptop and fail in CI.
    """
    try:
        server = start_server()
    except EmbeddedServerError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    with server:
        yield server


@pytest.fixture
def redis_client(redis_server: EmbeddedServer) -> Iterator[redis.Redis]:
    """
    A client of that server.
    """
    client = redis.Redis.from_url(redis_server.url)
    yield client
    client.close()


@pytest.fixture(autouse=True)
def manager_of_its_own() -> Iterator[None]:
    """
    No test meets the manager that an application of the test before has left as the process's.
    """
    use_manager(None)
    yield
    use_manager(None)


@pytest.fixture
def untouched_logging() -> Iterator[None]:
    """
    A worker in the test's own process sets up no logging: what it sets would outlive the test.
    """

    def leave_alone(**_kwargs: object) -> None:
        """Say that it is done."""

    signals.setup_logging.connect(leave_alone)
    yield
    signals.setup_logging.disconnect(leave_alone)


@pytest.fixture
def key_prefix() -> str:
    """
    A key prefix nobody else uses.
    """
    return f"test-{uuid.uuid4().hex[:12]}"
