"""
Whether the result backend can be told how a task ended is asked before anybody waits for it.
"""

from __future__ import annotations

import pytest
import redis
from celery import Celery

from omni_tasks import init_app
from omni_tasks.embedded import start_server
from omni_tasks.integration import telling
from omni_tasks.integration.install import integration_of


def test_a_backend_that_refuses_is_as_good_as_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that answers with an error, as one that cannot write its file, is left alone for a while, too."""
    monkeypatch.setattr(telling, "_PAUSE", 0.0)
    with start_server() as server:
        app = Celery("telling", broker=server.url, backend=server.url, set_as_current=False)
        init_app(app)
        states = integration_of(app).states
        assert states.answers()
        operator = redis.Redis.from_url(server.url)
        operator.acl_setuser("default", enabled=True, nopass=True, keys="*", commands=["+@all", "-ping"])
        assert not states.answers()
        operator.acl_setuser("default", enabled=True, nopass=True, keys="*", commands=["+@all"])
        assert states.answers()
        operator.close()
        app.close()
