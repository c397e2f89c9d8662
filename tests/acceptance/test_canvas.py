"""
Chains, groups, chords and callbacks whose members are held: each body runs once, and the whole goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from celery import Signature, chain, chord, group

from tests.acceptance.conftest import Stage
from tests.support.eventually import eventually

pytestmark = pytest.mark.acceptance


@pytest.mark.parametrize(
    "pool",
    [
        "prefork",
        pytest.param("threads", marks=pytest.mark.soak),
        pytest.param("gevent", marks=pytest.mark.soak),
        pytest.param("solo", marks=pytest.mark.soak),
    ],
)
@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_held_members_of_a_canvas_run_once(stage_on: Callable[..., Stage], broker: str, pool: str) -> None:
    """All at once through one worker: held together, let go together, right in the end."""
    play = stage_on(broker, ramp_initial_rate=50.0, failure_threshold=1000)
    play.worker(pool=pool)
    play.breaker.force_open()

    def task(name: str, *args: Any, **options: Any) -> Signature:
        made: Signature = play.app.signature(f"tests.support.app.{name}", args=args, **options)
        return made

    ways = {
        "chain": (chain(task("add", 1, 1), task("add", 2), task("add", 3)), 7),
        "group": (group(task("add", n, n) for n in range(3)), [0, 2, 4]),
        "chord, all held": (chord([task("add", n, n) for n in range(4)], task("total")), 12),
        "chord, one held": (chord([task("plain_add", 1, 1), task("add", 2, 2)], task("total")), 6),
        "replaced": (task("become", 2), 6),
    }
    results = {name: canvas.apply_async() for name, (canvas, _) in ways.items()}
    linked = task("add", 1, 1).apply_async(link=task("add", 40))
    failing = task("poison").apply_async(link_error=task("note"))
    play.results += [*results.values(), linked, failing]
    # The first step of each: 1 + 3 + 4 + 1 + 1, and the two with callbacks.
    eventually(lambda: play.held() == 12, within=20, what="all held")
    assert play.dependency.calls() == []
    play.breaker.release_force()
    assert {name: result.get(timeout=40) for name, result in results.items()} == {
        name: value for name, (_, value) in ways.items()
    }
    assert linked.get(timeout=20) == 2
    [callback] = eventually(lambda: linked.children, within=20, what="the callback was sent")
    assert callback.get(timeout=20) == 42
    eventually(lambda: play.told() == "ValueError", within=20, what="link_error")
    calls = Counter(call.task_id for call in play.dependency.calls())
    # chain 3, group 3, chords 5 and 2, replaced 3 + 2 under fewer ids, the linked two, the failing one
    assert sum(calls.values()) == 3 + 3 + 5 + 2 + 5 + 2 + 1
    # Under an id of its own each body ran once; what is replaced passes its id on: thrice itself, and the chain's end.
    assert sorted(calls.values(), reverse=True)[:2] == [4, 1]
    assert play.held() == 0
    # A busy process's last success is told a moment later.
    eventually(lambda: play.breaker.get_metrics().outstanding_requests == 0, within=5, what="all have reported")
