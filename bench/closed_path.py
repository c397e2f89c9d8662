"""
What a call through a closed circuit costs, as a ratio to one plain GET on the same kind of connection.

On a shared machine the mean says how often this process was interrupted.  So single operations alternate, and what is
printed is the ratio of their medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import redis

from omni_tasks import CircuitBreaker, CircuitBreakerConfig
from omni_tasks.breaker import open_store
from omni_tasks.embedded import start_server
from omni_tasks.store.connect import connect

__all__ = ["Figures", "measure"]

#: Calls in a batch.
_BATCH = 200

#: Seconds an operation of the threads' test sleeps, how many threads there are, and how often each sleeps.
_NAP, _THREADS, _NAPS = 0.005, 8, 20

_CONFIG = CircuitBreakerConfig(name="closed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """
    What was measured.

    Attributes:
        get_us: One GET of redis-py, the median in microseconds.

        call_us: One call through the breaker that does nothing, the median in microseconds.

        to_get: The ratio of the two.

        best_to_get: The ratio of the quickest of each, which other work on the machine has interrupted least.

        threads_to_bare: Eight threads that sleep 5 ms in each call, as a ratio to the same without a breaker.

        round_trips: Reads of the server for one call.

        scripts: Scripts the server runs for one call.

        server_us: Microseconds the server spends on one call.
    """

    get_us: float
    call_us: float
    to_get: float
    best_to_get: float
    threads_to_bare: float
    round_trips: float
    scripts: float
    server_us: float


def measure(url: str, *, batches: int = 40) -> Figures:
    """
    Measure against the server at *url*.
    """
    breaker = CircuitBreaker(_CONFIG, store=open_store(url, prefix="bench", timeout=5.0))
    with connect(url, timeout=5.0) as client:
        gets, calls = _alternate(lambda: client.get("bench"), lambda: breaker.call(int), batches)
        threads = statistics.median(_napping(lambda: breaker.call(_nap)) / _napping(_nap) for _ in range(3))
        trips, scripts, server_us = _on_the_server(client, lambda: breaker.call(int))
    return Figures(
        get_us=statistics.median(gets) * 1e6,
        call_us=statistics.median(calls) * 1e6,
        to_get=statistics.median(calls) / statistics.median(gets),
        best_to_get=min(calls) / min(gets),
        threads_to_bare=threads,
        round_trips=trips,
        scripts=scripts,
        server_us=server_us,
    )


def _alternate(
    first: Callable[[], object], second: Callable[[], object], batches: int
) -> tuple[list[float], list[float]]:
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(batches):
        # In batches still: a process that does something else between two calls leaves nothing to the next.
        for operation, into in zip((first, second), times, strict=True):
            for _ in range(_BATCH):
                began = time.perf_counter()
                operation()
                into.append(time.perf_counter() - began)
    return times


def _nap() -> None:
    time.sleep(_NAP)


def _napping(operation: Callable[[], object]) -> float:
    def nap() -> None:
        for _ in range(_NAPS):
            operation()

    threads = [threading.Thread(target=nap) for _ in range(_THREADS)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


def _on_the_server(client: redis.Redis, operation: Callable[[], object]) -> tuple[float, float, float]:
    calls = 1000
    client.config_resetstat()
    for _ in range(calls):
        operation()
    stats, commands = client.info("stats"), client.info("commandstats")
    ours = [commands.get(f"cmdstat_{name}", {"calls": 0, "usec": 0}) for name in ("evalsha", "hget")]
    # One read is that of the question for the statistics.
    return (
        (stats["total_reads_processed"] - 1) / calls,
        ours[0]["calls"] / calls,
        sum(command["usec"] for command in ours) / calls,
    )


def main() -> int:
    """
    Print the figures; the exit status says whether a bound that was given holds.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.closed_path", description=__doc__)
    parser.add_argument("--url", help="a server to use; one of its own by default")
    parser.add_argument("--batches", type=int, default=40, help="pairs of batches (default: 40)")
    parser.add_argument("--at-most", type=float, default=float("inf"), help="fail above this ratio to a GET")
    options = parser.parse_args()
    if options.url:
        figures = measure(options.url, batches=options.batches)
    else:
        with start_server() as server:
            figures = measure(server.url, batches=options.batches)
    lines = [
        f"GET of redis-py                   {figures.get_us:8.1f} us",
        f"call through a closed circuit     {figures.call_us:8.1f} us",
        f"ratio                             {figures.to_get:8.2f}",
        f"8 threads that sleep 5 ms / bare  {figures.threads_to_bare:8.2f}",
        f"round trips a call                {figures.round_trips:8.2f}",
        f"scripts a call                    {figures.scripts:8.2f}",
        f"server time a call                {figures.server_us:8.1f} us",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return int(figures.to_get > options.at_most)


if __name__ == "__main__":
    sys.exit(main())
