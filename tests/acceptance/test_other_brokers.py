"""
Tasks wait on brokers that are neither Redis nor RabbitMQ: with an ETA in their own queue, or in the store.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from celery import Celery, Task
from celery.contrib.testing.worker import start_worker

from omni_tasks import CircuitBreakerTask, init_app
from omni_tasks.embedded import EmbeddedServer
from omni_tasks.integration.eta import EtaQueue
from omni_tasks.integration.install import integration_of
from tests.acceptance.conftest import Stage
from tests.support.eventually import eventually

pytestmark = pytest.mark.acceptance


@pytest.mark.soak
@pytest.mark.parametrize("parking", ["broker", "store"])
def test_a_broker_of_files_holds_and_returns(stage: Callable[..., Stage], parking: str) -> None:
    """On kombu's filesystem transport every held task runs once, with its retries untouched."""
    play = stage("filesystem://", parking)
    play.worker()
    play.trip()
    results = play.send("plain", 10)
    eventually(lambda: {result.state for result in results} == {"RETRY"}, within=20, what="all held")
    play.dependency.set(up=True)
    outcomes = [result.get(timeout=40) for result in results]
    assert {(outcome["retries"], outcome["holds"] >= 1) for outcome in outcomes} == {(0, True)}
    runs = Counter(call.task_id for call in play.dependency.calls(phase="end"))
    assert [runs[result.id] for result in results] == [1] * 10


@pytest.mark.usefixtures("untouched_logging")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Celery calls what redis-py calls old
def test_client_and_worker_in_one_process(redis_server: EmbeddedServer, key_prefix: str) -> None:
    """On the in-memory transport a worker in a thread holds tasks and runs each once when the circuit lets it."""
    app = Celery("memory", broker="memory://", backend=redis_server.url, set_as_current=False)
    circuit = {"failure_threshold": 1, "recovery_timeout": 0.5}
    init_app(app, redis_url=redis_server.url, key_prefix=key_prefix, circuits={"dep": circuit})
    assert isinstance(integration_of(app).lot, EtaQueue)
    ran: list[str] = []
    down = [True]

    @app.task(name="work", base=CircuitBreakerTask, circuit="dep", bind=True, shared=False)
    def work(self: Task) -> int:
        """
        Fail while the dependency is down.
        """
        if down[0]:
            raise ConnectionError
        ran.append(str(self.request.id))
        return int(getattr(self.request, "omni_holds", 0))

    with start_worker(app, pool="solo", perform_ping_check=False, shutdown_timeout=20):
        first = work.delay()
        eventually(lambda: first.state == "FAILURE", within=10, what="tripped")
        held = [work.delay() for _ in range(3)]
        eventually(lambda: {result.state for result in held} == {"RETRY"}, within=10, what="all held")
        down[0] = False
        assert all(result.get(timeout=20, disable_sync_subtasks=False) >= 1 for result in held)
    assert sorted(ran) == sorted(result.id for result in held)
    app.close()
