"""
The demo's provider in a process of its own, as its clients see it.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from types import TracebackType
from typing import Any, Self

import httpx2

from omni_tasks.tied import spawn_tied
from tests.support.eventually import eventually
from tests.support.worker import ROOT

__all__ = ["RunningProvider"]


class RunningProvider:
    """
    A provider, started when made.
    """

    def __init__(self, *, latency: float = 0.0) -> None:
        """
        Start it on a port of the kernel's choice; *latency* in seconds.
        """
        command = [sys.executable, "-m", "demo.provider", "--port", "0", "--latency", str(latency)]
        # A file: it logs each request, and a pipe that nobody empties would stop it after some hundred of them.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process runs
        self.process = spawn_tied(command, output=self._log, cwd=ROOT)
        found = eventually(self._listening, within=30, what="the provider listens")
        assert found is not None
        self.port = int(found[1])
        self.http = httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", trust_env=False, timeout=10)

    @property
    def url(self) -> str:
        """
        The base URL for the SDK.
        """
        return f"http://127.0.0.1:{self.port}/v1"

    def switch(self, **wanted: object) -> httpx2.Response:
        """
        Change its mode, latency or announced wait.
        """
        return self.http.post("/control", json=wanted)

    def calls(self, since: int = 0) -> list[dict[str, Any]]:
        """
        Read its ledger.
        """
        calls: list[dict[str, Any]] = self.http.get("/ledger", params={"since": since}).json()["calls"]
        return calls

    def health(self) -> dict[str, Any]:
        """
        Read its numbers.
        """
        numbers: dict[str, Any] = self.http.get("/healthz").json()
        return numbers

    def close(self) -> None:
        """
        End it.
        """
        self.http.close()
        self.process.terminate()
        self.process.wait(10)
        self._log.close()

    def _listening(self) -> re.Match[bytes] | None:
        return re.search(rb"listening on 127\.0\.0\.1:(\d+)\n", os.pread(self._log.fileno(), 1000, 0))

    def __enter__(self) -> Self:
        """
        Use it for a block.
        """
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """
        End it with the block.
        """
        self.close()
