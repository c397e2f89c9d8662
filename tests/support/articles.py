"""
The workers' application on a stage: a broker, two providers, workers, and ``submit``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from omni_tasks import CircuitBreakerConfig
from omni_tasks.breaker import CircuitBreaker
from omni_tasks.embedded import start_server
from omni_tasks.stores import open_store
from tests.support.provider import RunningProvider
from tests.support.worker import ROOT, Worker

__all__ = ["CONCURRENCY", "KEY", "RAMP", "THRESHOLD", "WORKERS", "Articles"]

KEY = "sk-canary-4711"

#: Of the stage that most tests share: processes, failures that open a circuit, task starts per second after it closed.
WORKERS, CONCURRENCY, THRESHOLD, RAMP = 2, 4, 5, 20.0


class Articles:
    """
    Everything one test of the application plays with; started when made.
    """

    def __init__(self, folder: Path, prefix: str, *, latency: float = 0.0, **circuit: Any) -> None:
        """
        Start the broker and the providers.

        Args:
            folder: For articles, logs and the broker's data.

            prefix: Of every key in the broker.

            latency: Of the providers, in seconds.

            circuit: Options of the providers' circuits.
        """
        self.folder = folder
        self.root = self.out = folder / "articles"
        self._seen = {"openai": 0, "deepseek": 0}
        self.prefix = prefix
        self.circuit = {"failure_threshold": 3, "recovery_timeout": 1.0, "probe_lease": 5.0, **circuit}
        self.server = start_server(data_dir=folder)
        self.latency = latency
        self.openai, self.deepseek = RunningProvider(latency=latency), RunningProvider(latency=latency)
        self.workers: list[Worker] = []

    @property
    def environment(self) -> dict[str, str]:
        """
        What every process of the application is started with.
        """
        foreign = ("OMNI_", "CELERY_", "OPENAI_", "DEEPSEEK_", "ARTICLES_", "DEFAULT_", "RESILIENCE_")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        return {
            **inherited,
            "CELERY_BROKER_URL": self.server.url,
            "OPENAI_BASE_URL": self.openai.url,
            "OPENAI_API_KEY": KEY,
            "DEEPSEEK_BASE_URL": self.deepseek.url,
            "DEEPSEEK_API_KEY": KEY,
            "ARTICLES_DIR": str(self.root),
            "OMNI_KEY_PREFIX": self.prefix,
            "OMNI_CIRCUITS": json.dumps({"ai_providers": self.circuit}),
            "NO_PROXY": "127.0.0.1",
        }

    def begin(self) -> None:
        """
        Begin anew, without new processes: providers and circuits are well, the folder of articles is another.
        """
        self.out = self.root / uuid.uuid4().hex[:12]
        for provider, running in (("openai", self.openai), ("deepseek", self.deepseek)):
            running.switch(mode="ok", latency=self.latency, retry_after_header=None)
            self.breaker(provider).reset()
            self._seen[provider] = running.health()["calls"]

    def calls(self, provider: str) -> list[dict[str, Any]]:
        """
        What reached a provider since the beginning.
        """
        running: RunningProvider = getattr(self, provider)
        return running.calls(since=self._seen[provider])

    def delivered(self) -> Counter[str]:
        """
        How many articles were delivered for each trace id, by the providers' own books.
        """
        calls = [*self.calls("openai"), *self.calls("deepseek")]
        return Counter(call["trace_id"] for call in calls if call["answered"] == 200)

    def worker(self, environment: Mapping[str, str] | None = None, **options: Any) -> Worker:
        """
        Start a worker.
        """
        made = Worker({**self.environment, **(environment or {})}, self.folder, app="workers", **options)
        self.workers.append(made)
        return made

    def prompts(self, lines: Sequence[Mapping[str, object]]) -> Path:
        """
        Write a file of prompts.
        """
        path = self.folder / f"prompts-{len(list(self.folder.glob('prompts-*')))}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    def submit(self, prompts: Path, *options: str) -> subprocess.CompletedProcess[str]:
        """
        Run ``submit`` to its end.
        """
        command = [sys.executable, "-m", "workers", "submit", str(prompts), "--out", str(self.out), *options]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, env=self.environment, timeout=300, check=False
        )

    def start_submit(self, prompts: Path, *options: str) -> subprocess.Popen[bytes]:
        """
        Start ``submit`` and let it run.
        """
        command = [sys.executable, "-m", "workers", "submit", str(prompts), "--out", str(self.out), *options]
        return subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT, env=self.environment
        )

    def manifest(self) -> list[dict[str, Any]]:
        """
        Read the manifest's lines.
        """
        return [json.loads(line) for line in (self.out / "manifest.jsonl").read_text().splitlines() if line]

    def written(self) -> dict[str, str]:
        """
        Read the articles, by slug.
        """
        return {path.stem: path.read_text() for path in self.out.glob("*.md")}

    def breaker(self, provider: str) -> CircuitBreaker:
        """
        A provider's circuit, asked from outside the workers.
        """
        config = CircuitBreakerConfig(name="ai_providers_cb", **self.circuit)
        return CircuitBreaker(config, store=open_store(self.server.url, prefix=self.prefix)).keyed(provider)

    def __enter__(self) -> Self:
        """
        Use it for a block.
        """
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """
        End all of it.
        """
        # First, so that no worker waits for an answer that hangs.
        self.openai.close()
        self.deepseek.close()
        for worker in self.workers:
            worker.stop()
        self.server.stop()
