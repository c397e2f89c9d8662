"""
Where a store is: one server, a primary that sentinels know, or a cluster.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from redis.connection import parse_url

__all__ = ["SCHEMES", "StorePlace", "parse"]

#: What a URL may begin with, and how many databases there are to choose from at such a place.
SCHEMES: Mapping[str, str] = {
    "redis": "server",
    "rediss": "server",
    "unix": "server",
    "redis+sentinel": "sentinel",
    "rediss+sentinel": "sentinel",
    "redis+cluster": "cluster",
    "rediss+cluster": "cluster",
}

_PORTS = {"server": 6379, "sentinel": 26379, "cluster": 6379}


@dataclass(frozen=True, slots=True, kw_only=True)
class StorePlace:
    """
    A store's URL, taken apart.

    Attributes:
        kind: ``"server"``, ``"sentinel"`` or ``"cluster"``.

        hosts: Host and port of each sentinel or node that may be asked first; empty for a server.

        service: What the sentinels call the primary.

        options: For redis-py, without hosts and ports.
    """

    kind: str
    hosts: tuple[tuple[str, int], ...] = ()
    service: str = ""
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)


def parse(url: str) -> StorePlace:
    """
    Take a store's URL apart.

    Raises:
        ValueError: It is none; the text says what it must be, and holds nothing of the URL.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in SCHEMES:
        raise ValueError("a redis://, rediss:// or unix:// URL, or one with +sentinel or +cluster in its scheme")
    kind = SCHEMES[scheme]
    place, mark, query = rest.partition("?")
    if kind == "server":
        return StorePlace(kind=kind, options=_options(scheme, url))
    user, at, place = place.rpartition("@")
    hosts, _, path = place.partition("/")
    service, _, database = path.partition("/")
    if kind == "sentinel" and not service:
        raise ValueError(f"{scheme}://host:port,host:port/service_name[/db], with the name of the primary")
    if kind == "cluster" and path.strip("/0"):
        raise ValueError(f"{scheme}://host:port,host:port without a path: a cluster has one database")
    if not (database or "0").isdecimal():
        raise ValueError(f"{scheme}://host:port,host:port/service_name[/db], with a number as db")
    base = scheme.partition("+")[0]
    return StorePlace(
        kind=kind,
        hosts=tuple(_host(scheme, text, _PORTS[kind]) for text in hosts.split(",")),
        service=unquote(service) if kind == "sentinel" else "",
        options=_options(scheme, f"{base}://{user}{at}host/{database or 0}{mark}{query}"),
    )


def _host(scheme: str, text: str, port: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname or "", parts.port or port
    except ValueError:
        host = ""
    if not host:
        raise ValueError(f"{scheme}://host:port,host:port with a name or address and a port number each")
    return host, port


def _options(scheme: str, url: str) -> dict[str, Any]:
    try:
        # Read for its errors: a port that is no number, an address without its closing bracket.
        _ = urlsplit(url).port
        options: dict[str, Any] = parse_url(url)
    except ValueError:
        raise ValueError(f"a {scheme}:// URL whose port and options redis-py can read") from None
    for name in ("host", "port", "connection_class"):
        options.pop(name, None)
    if scheme.startswith("rediss"):
        options["ssl"] = True
        # redis-py below 6 verified the chain, but not the name.
        options.setdefault("ssl_check_hostname", options.get("ssl_cert_reqs") != "none")
    return options
