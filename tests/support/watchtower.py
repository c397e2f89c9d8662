"""
A real Prometheus, a real Alertmanager and a webhook, on the files of ops/.

What takes minutes there takes seconds here: :func:`hurried` copies the files and
changes the durations that its tables name, and nothing else.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx2

from demo.processes import Processes
from tests.support.eventually import eventually
from tests.support.http_server import HttpServer
from tests.support.worker import ROOT

__all__ = ["OPS", "Notice", "Watchtower", "free_port", "hurried"]

OPS = ROOT / "ops"

#: File below ops/ -> what is replaced in it; each must be there, wherever it stands it is replaced.
HURRY: Mapping[str, Mapping[str, str]] = {
    "prometheus/prometheus.yml": {
        "scrape_interval: 15s": "scrape_interval: 1s",
        "scrape_timeout: 10s": "scrape_timeout: 1s",
        "evaluation_interval: 15s": "evaluation_interval: 1s",
    },
    "prometheus/rules/alerts.rules.yml": {
        "(circuit_breaker_outage_seconds[10m])) > 300": "(circuit_breaker_outage_seconds[10m])) > 3",
        "for: 1m": "for: 3s",
    },
    "prometheus/rules/recording.rules.yml": {"interval: 1h": "interval: 1s", "[1h:1m]": "[1h:1s]"},
    "alertmanager/alertmanager.yml": {"group_wait: 10s": "group_wait: 1s", "group_interval: 1m": "group_interval: 1s"},
}


def hurried(folder: Path, more: Mapping[str, Mapping[str, str]]) -> Path:
    """
    Copy the files of HURRY below *folder*, with their durations, and with *more* replaced as well.
    """
    for name, changes in HURRY.items():
        text = (OPS / name).read_text()
        for old, new in {**changes, **more.get(name, {})}.items():
            assert old in text, f"ops/{name} has no {old!r} any more"
            text = text.replace(old, new)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def free_port() -> int:
    """
    Ask the kernel for a port nobody uses.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Notice:
    """
    One alert of a notification: who got it, whether it fires or is over.
    """

    receiver: str
    status: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]

    @property
    def name(self) -> str:
        """
        The alert's name.
        """
        return self.labels["alertname"]


class Watchtower:
    """
    Prometheus, Alertmanager and what the webhook was told.
    """

    def __init__(self, tools: Path, folder: Path, hook: HttpServer, exporter: str) -> None:
        """
        Choose addresses and write the configuration; ``start`` starts.

        Args:
            tools: Folder of the programs.

            folder: For configuration and data.

            hook: Gets every notification, at ``/v1/<receiver>``.

            exporter: ``host:port`` that Prometheus scrapes.
        """
        self._tools, self._folder, self._hook = tools, folder, hook
        self.alertmanager = f"127.0.0.1:{free_port()}"
        self._prometheus = f"127.0.0.1:{free_port()}"
        self._http = httpx2.Client(trust_env=False)
        receivers = {
            f"- name: {name} #": f"- name: {name}\n    webhook_configs: [{{url: '{hook.url}/{name}'}}] #"
            for name in ("page", "ticket")
        }
        targets = {"[alertmanager:9093]": f"['{self.alertmanager}']", "[exporter:9808]": f"['{exporter}']"}
        hurried(folder, {"alertmanager/alertmanager.yml": receivers, "prometheus/prometheus.yml": targets})

    def start(self, processes: Processes) -> None:
        """
        Start both and wait until they are ready.
        """
        data = self._folder / "data"
        alertmanager = [
            f"--config.file={self._folder}/alertmanager/alertmanager.yml",
            f"--storage.path={data}/alertmanager",
            f"--web.listen-address={self.alertmanager}",
            "--cluster.listen-address=",
        ]
        prometheus = [
            f"--config.file={self._folder}/prometheus/prometheus.yml",
            f"--storage.tsdb.path={data}/prometheus",
            f"--web.listen-address={self._prometheus}",
        ]
        processes.start("alertmanager", [f"{self._tools}/prometheus-alertmanager", *alertmanager], os.environ)
        processes.start("prometheus", [f"{self._tools}/prometheus", *prometheus], os.environ)
        for address in (self.alertmanager, self._prometheus):
            eventually(partial(self._ready, address, processes), within=30, what=f"{address} ready")

    def ask(self, expression: str) -> list[dict[str, Any]]:
        """
        Evaluate an expression now.

        Returns:
            The series, each with ``metric``, and ``value`` (or ``values`` where it is a range vector).
        """
        return self._get("query", query=expression)

    def value(self, expression: str) -> float | None:
        """
        Evaluate an expression that has one value now, or none.
        """
        series = self.ask(expression)
        assert len(series) < 2, series
        return float(series[0]["value"][1]) if series else None

    def over(self, expression: str, began: float, ended: float) -> list[dict[str, Any]]:
        """
        Evaluate an expression at every second from *began* to *ended*, Unix times.
        """
        return self._get("query_range", query=expression, start=began, end=ended, step="1s")

    def alerts(self) -> list[dict[str, Any]]:
        """
        What Alertmanager knows to be firing, what it keeps silent about too: ``labels``, ``status`` and more of each.
        """
        answer = self._http.get(f"http://{self.alertmanager}/api/v2/alerts")
        assert answer.is_success, answer.text
        found: list[dict[str, Any]] = answer.json()
        return found

    def notices(self, name: str = "", status: str = "") -> list[Notice]:
        """
        What the webhook was told so far; of one alert, of one status, where they are given.
        """
        found = []
        for request in list(self._hook.requests):
            message: Any = request.json()
            found += [
                Notice(message["receiver"], alert["status"], alert["labels"], alert["annotations"])
                for alert in message["alerts"]
            ]
        return [each for each in found if name in ("", each.name) and status in ("", each.status)]

    def close(self) -> None:
        """
        Close the connection to them.
        """
        self._http.close()

    def _get(self, way: str, **parameters: Any) -> list[dict[str, Any]]:
        answer = self._http.get(f"http://{self._prometheus}/api/v1/{way}", params=parameters)
        assert answer.is_success, answer.text
        found: list[dict[str, Any]] = answer.json()["data"]["result"]
        return found

    def _ready(self, address: str, processes: Processes) -> bool:
        processes.check()
        try:
            return self._http.get(f"http://{address}/-/ready").is_success
        except httpx2.TransportError:
            return False
