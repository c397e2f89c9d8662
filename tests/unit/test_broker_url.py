"""
How the broker's URL reaches our own client.
"""

from __future__ import annotations

import ssl
from typing import Any

import pytest
import redis
from celery import Celery

from omni_tasks.integration.broker import broker_url


def _url(url: str, use_ssl: object = None, transport: str | None = None) -> str | None:
    app = Celery("url", broker=url, set_as_current=False)
    app.conf.broker_transport = transport
    app.conf.broker_use_ssl = use_ssl
    return broker_url(app)


@pytest.mark.parametrize(
    ("url", "use_ssl", "wanted"),
    [
        ("redis://:p%40w@h:1/2", None, {"host": "h", "port": 1, "db": 2, "password": "p@w"}),
        ("redis://h", None, {"host": "h", "port": 6379}),
        ("rediss://h:6380/1", None, {"host": "h", "port": 6380, "db": 1}),
        ("rediss://h/0?ssl_cert_reqs=none", None, {"host": "h", "db": 0, "ssl_cert_reqs": "none"}),
        (
            "rediss://h/0?ssl_cert_reqs=CERT_REQUIRED&ssl_ca_certs=/ca.pem",
            None,
            {"ssl_cert_reqs": "required", "ssl_ca_certs": "/ca.pem"},
        ),
        ("redis://h:1/2", {"ssl_cert_reqs": ssl.CERT_NONE}, {"host": "h", "db": 2, "ssl_cert_reqs": "none"}),
        ("redis+socket:///run/r.sock?virtual_host=2", None, {"path": "/run/r.sock", "db": 2}),
        ("redis+socket:///run/r.sock", None, {"path": "/run/r.sock"}),
    ],
)
def test_a_redis_brokers_url_is_one_for_our_client(url: str, use_ssl: object, wanted: dict[str, Any]) -> None:
    """
    Host, database, password, socket and TLS options arrive as kombu has them.
    """
    given = _url(url, use_ssl)
    assert given is not None
    options = redis.Redis.from_url(given).connection_pool.connection_kwargs
    assert {name: options.get(name) for name in wanted} == wanted


@pytest.mark.parametrize(
    ("url", "use_ssl", "wanted"),
    [
        ("redis://:p%40w@h:1/2", None, "redis://:p%40w@h:1/2"),
        ("redis://h:1/2", {"ssl_cert_reqs": ssl.CERT_NONE}, "rediss://h:1/2?ssl_cert_reqs=none"),
        ("rediss://h:1/2?ssl_cert_reqs=CERT_REQUIRED", None, "rediss://h:1/2?ssl_cert_reqs=required"),
    ],
)
def test_our_own_transport_is_redis_too(url: str, use_ssl: object, wanted: str) -> None:
    """
    A transport that is named by its class leaves the URL what it was.
    """
    assert _url(url, use_ssl, "omni_tasks.integration.fetch:Transport") == wanted


@pytest.mark.parametrize("url", ["amqp://guest:guest@h//", "memory://", "filesystem://", "sentinel://h:26379/0"])
def test_any_other_broker_has_none(url: str) -> None:
    """
    Only Redis can hold tasks.
    """
    assert _url(url) is None
