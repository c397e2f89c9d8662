"""
The same promises through pytest-celery, the plugin of Celery's own maintainers, on plain processes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery, signature
from pytest_celery import (
    CeleryBackendCluster,
    CeleryBrokerCluster,
    CeleryTestBackend,
    CeleryTestBroker,
    CeleryTestSetup,
    CeleryTestWorker,
    CeleryWorkerCluster,
)

from omni_tasks import CircuitBreaker, CircuitBreakerConfig, get_lot, init_app
from omni_tasks.breaker import open_store
from omni_tasks.embedded import EmbeddedServer, start_server
from tests.support.dependency import Dependency
from tests.support.eventually import eventually
from tests.support.nodes import ServerNode, WorkerNode

pytestmark = pytest.mark.acceptance


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """
    One server for everything.
    """
    with start_server(data_dir=tmp_path) as started:
        yield started


@pytest.fixture
def celery_broker_cluster(server: EmbeddedServer) -> CeleryBrokerCluster:
    """
    The broker.
    """
    return CeleryBrokerCluster(CeleryTestBroker(ServerNode(server)))


@pytest.fixture
def celery_backend_cluster(server: EmbeddedServer) -> CeleryBackendCluster:
    """
    The result backend.
    """
    return CeleryBackendCluster(CeleryTestBackend(ServerNode(server)))


@pytest.fixture
def celery_worker_cluster(
    celery_worker_cluster_config: dict[str, dict[str, list[str]]],
    celery_setup_app: Celery,
    tmp_path: Path,
    key_prefix: str,
) -> Iterator[CeleryWorkerCluster]:
    """
    One worker of the acceptance tests' application.
    """
    circuit = {"recovery_timeout": 1.0}
    init_app(celery_setup_app, key_prefix=key_prefix, circuits={"dep": circuit})
    environment = {
        "TEST_BROKER_URL": celery_worker_cluster_config["celery_broker_cluster_config"]["host_urls"][0],
        "TEST_FOLDER": str(tmp_path),
        "OMNI_KEY_PREFIX": key_prefix,
        "OMNI_CIRCUITS": json.dumps({"dep": circuit, "outer": {}}),
    }
    worker = CeleryTestWorker(WorkerNode(environment, tmp_path), celery_setup_app)
    yield CeleryWorkerCluster(worker)
    worker.teardown()


def test_held_tasks_survive_their_worker_and_their_broker(
    celery_setup: CeleryTestSetup, server: EmbeddedServer, tmp_path: Path, key_prefix: str
) -> None:
    """Held, the worker killed and the broker killed and restarted: every task runs, once."""
    dependency = Dependency(tmp_path)
    dependency.set(up=True)
    app, lot = celery_setup.app, get_lot(celery_setup.app)
    breaker = CircuitBreaker(CircuitBreakerConfig(name="dep"), store=open_store(server.url, prefix=key_prefix))
    breaker.force_open()
    results = [signature("tests.support.app.plain", app=app).delay() for _ in range(10)]
    celery_setup.worker.wait_for_log("held for circuit dep")
    eventually(lambda: lot.counts(["dep"]) == {"dep": 10}, within=20, what="all held")
    celery_setup.worker.kill()
    celery_setup.broker.restart(force=True)
    celery_setup.worker.restart()
    breaker.release_force()
    assert [result.get(timeout=30)["holds"] for result in results] == [1] * 10
    assert len(dependency.calls()) == 10
