"""
What a store's URL says, in each of its forms.
"""

from __future__ import annotations

from typing import Any

import pytest
import redis
from celery import Celery
from redis.sentinel import SentinelConnectionPool

from omni_tasks import ConfigurationError, ResilienceConfiguration
from omni_tasks.integration import places
from omni_tasks.store.connect import connect
from omni_tasks.store.url import SCHEMES, StorePlace, parse

FORMS: list[tuple[str, str, tuple[tuple[str, int], ...], str, dict[str, Any]]] = [
    ("redis://:p%40w@h:1/2", "server", (), "", {"password": "p@w", "db": 2}),
    ("redis://h", "server", (), "", {}),
    ("rediss://u:p@h/1", "server", (), "", {"username": "u", "password": "p", "ssl": True, "ssl_check_hostname": True}),
    ("rediss://h?ssl_cert_reqs=none", "server", (), "", {"ssl_cert_reqs": "none", "ssl_check_hostname": False}),
    ("unix:///run/r.sock?db=2", "server", (), "", {"path": "/run/r.sock", "db": 2}),
    ("redis+sentinel://a,b:1/my%20primary", "sentinel", (("a", 26379), ("b", 1)), "my primary", {"db": 0}),
    ("redis+sentinel://:p@[::1]:5/s/3", "sentinel", (("::1", 5),), "s", {"password": "p", "db": 3}),
    ("rediss+sentinel://a/s?ssl_ca_certs=/c", "sentinel", (("a", 26379),), "s", {"ssl": True, "ssl_ca_certs": "/c"}),
    ("redis+cluster://a:1,b", "cluster", (("a", 1), ("b", 6379)), "", {}),
    ("rediss+cluster://u:p@a/0", "cluster", (("a", 6379),), "", {"username": "u", "ssl": True}),
]


@pytest.mark.parametrize(("url", "kind", "hosts", "service", "options"), FORMS)
def test_a_url_is_taken_apart(
    url: str, kind: str, hosts: tuple[tuple[str, int], ...], service: str, options: dict[str, Any]
) -> None:
    """
    Each form names its hosts and carries redis-py's own options; TLS checks the certificate and its name by default.
    """
    place = parse(url)
    assert (place.kind, place.hosts, place.service) == (kind, hosts, service)
    assert {name: place.options.get(name) for name in options} == options


def test_every_scheme_is_shown_here() -> None:
    """
    A new scheme cannot be added without being tested here.
    """
    assert {url.partition(":")[0] for url, *_ in FORMS} == set(SCHEMES)


@pytest.mark.parametrize("url", ["http://u:hunter2@h", "redis+sentinel://:hunter2@h", "redis+cluster://:hunter2@h:x"])
def test_a_refusal_holds_nothing_of_the_url(url: str) -> None:
    """
    What is wrong is said without the password, and so is what a place looks like in a log.
    """
    with pytest.raises(ValueError, match="://") as refused:
        parse(url)
    assert "hunter2" not in str(refused.value)
    assert "hunter2" not in repr(parse("redis+cluster://:hunter2@h"))


def test_sentinels_have_a_login_of_their_own() -> None:
    """
    The URL's user and password are the servers'; the sentinels' are options, and TLS is for both.
    """
    client = connect(
        "rediss+sentinel://:servers@a/s/3?sentinel_username=u&sentinel_password=sentinels&ssl_ca_certs=/c", timeout=0.5
    )
    pool = client.connection_pool
    assert isinstance(pool, SentinelConnectionPool)
    assert {name: pool.connection_kwargs[name] for name in ("password", "db", "ssl_ca_certs", "socket_timeout")} == {
        "password": "servers",
        "db": 3,
        "ssl_ca_certs": "/c",
        "socket_timeout": 0.5,
    }
    sentinel: redis.Redis = pool.sentinel_manager.sentinels[0]
    asked = sentinel.connection_pool.connection_kwargs
    assert (asked["username"], asked["password"], asked["ssl_ca_certs"], asked["socket_timeout"]) == (
        *("u", "sentinels"),
        *("/c", 0.5),
    )


def test_a_place_is_a_value() -> None:
    """
    Two readings of one URL are equal.
    """
    assert parse("redis+cluster://a") == parse("redis+cluster://a:6379")
    assert isinstance(parse("redis://h"), StorePlace)


def test_a_cluster_does_not_keep_held_tasks() -> None:
    """
    Where the broker is not Redis the store also keeps what is known of held tasks, and must not be a cluster.
    """
    app = Celery("clustered", broker="amqp://127.0.0.1:1//", set_as_current=False)
    settings = ResilienceConfiguration(redis_url="redis+cluster://:hunter2@127.0.0.1:1")
    with pytest.raises(ConfigurationError, match="no cluster") as refused:
        places.open_parking(app, settings, lambda: None)
    assert "hunter2" not in str(refused.value)
