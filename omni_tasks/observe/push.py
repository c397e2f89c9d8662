"""
Metrics for a Pushgateway, where Prometheus cannot reach an exporter.
"""

from __future__ import annotations

import base64
from urllib.parse import unquote, urlsplit, urlunsplit

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from omni_tasks.observe.post import post

__all__ = ["push"]

#: All that is pushed is one group: the cluster's numbers, whoever pushes them.
_JOB = "omni_tasks"

_WITHIN = 2.0


def push(url: str, registry: CollectorRegistry) -> None:
    """
    Replace what the Pushgateway at *url* has of us.

    Raises:
        DeliveryError: It did not take it.
    """
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    target = urlunsplit((parts.scheme, place, f"{parts.path.rstrip('/')}/metrics/job/{_JOB}", "", ""))
    headers = {"Content-Type": CONTENT_TYPE_LATEST}
    if parts.username is not None:
        words = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(words.encode()).decode()}"
    post(target, generate_latest(registry), headers, within=_WITHIN, private=True, method="PUT")
