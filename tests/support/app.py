"""
The application of the acceptance tests; configured by the environment of its process.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery import Celery, Task
from celery.exceptions import Ignore, Reject
from kombu import Queue  # type: ignore[attr-defined] # it is lazy
from kombu.message import Message

from omni_tasks import CircuitBreakerTask, get_circuit_breaker_manager, init_app
from omni_tasks.integration import telling
from omni_tasks.integration.holding import HoldingQueues
from omni_tasks.integration.ledger import Ledger
from omni_tasks.integration.lot import Lot
from omni_tasks.integration.request import CircuitRequest
from omni_tasks.integration.store_lot import StoreLot
from omni_tasks.observe.state import MonitorState
from tests.support.dependency import Dependency, DependencyDownError
from tests.support.rabbitmq import quorum_options

app = Celery("acceptance")
app.conf.update(
    task_default_queue=os.environ.get("TEST_QUEUE", "celery"),
    broker_url=os.environ["TEST_BROKER_URL"],
    broker_transport=os.environ.get("TEST_BROKER_TRANSPORT"),
    result_backend=os.environ.get("TEST_RESULT_BACKEND", os.environ["TEST_BROKER_URL"]),
    broker_transport_options={
        "visibility_timeout": int(os.environ.get("TEST_VISIBILITY_TIMEOUT", "3600")),
        # kombu looks for abandoned messages every 100 s; a test cannot wait that long.
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        **json.loads(os.environ.get("TEST_TRANSPORT_OPTIONS", "{}")),
    },
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=int(os.environ.get("TEST_PREFETCH", "4")),
    worker_send_task_events=True,
    task_send_sent_event=True,
    worker_hijack_root_logger=True,
)
if "TEST_QUORUM" in os.environ:
    app.conf.update(quorum_options(os.environ["TEST_QUEUE"]))
if "TEST_DEDICATED" in os.environ:
    app.conf.task_queues = [Queue("celery"), Queue("dedicated")]
init_app(app)
dependency = Dependency(Path(os.environ["TEST_FOLDER"]))


@app.task(base=CircuitBreakerTask, circuit="dep", bind=True, max_retries=0)
def plain(self: Task) -> dict[str, int]:
    """Call the dependency once; no retries of its own."""
    dependency.call(self.request.id)
    return {"retries": self.request.retries, "holds": getattr(self.request, "omni_holds", 0)}


@app.task(base=CircuitBreakerTask, circuit="dep", bind=True, max_retries=0, autoretry_for=(Exception,))
def autoretry(self: Task) -> dict[str, int]:
    """Call the dependency once; autoretry without a budget."""
    dependency.call(self.request.id)
    return {"retries": self.request.retries, "holds": getattr(self.request, "omni_holds", 0)}


@app.task(
    base=CircuitBreakerTask,
    circuit="dep",
    bind=True,
    max_retries=5,
    autoretry_for=(DependencyDownError,),
    retry_backoff=True,
)
def patient(self: Task) -> None:
    """Call the dependency; retried later where it has no room."""
    dependency.call(self.request.id)


@app.task(base=CircuitBreakerTask, circuit="dep", bind=True, max_retries=3)
def manual_retry(self: Task) -> dict[str, int]:
    """Call the dependency; retry by hand."""
    try:
        dependency.call(self.request.id)
    except DependencyDownError as error:
        raise self.retry(exc=error, countdown=0) from error
    return {"retries": self.request.retries, "holds": getattr(self.request, "omni_holds", 0)}


@app.task(base=CircuitBreakerTask, circuit="dep", bind=True, max_retries=0, acks_late=True, reject_on_worker_lost=True)
def late(self: Task) -> dict[str, int]:
    """Call the dependency; acknowledged when done, put back when the worker dies."""
    dependency.call(self.request.id)
    return {"retries": self.request.retries, "holds": getattr(self.request, "omni_holds", 0)}


@app.task(base=CircuitBreakerTask, circuit="dep", bind=True, max_retries=0, time_limit=1)
def limited(self: Task) -> None:
    """Call the dependency under a hard time limit of one second."""
    dependency.call(self.request.id)


@app.task(bind=True)
def unguarded(self: Task, seconds: float = 0.0) -> str:
    """A task of no circuit."""
    time.sleep(seconds)
    return str(self.request.id)


@app.task(base=CircuitBreakerTask, circuit="dep", bind=True, max_retries=0)
def poison(self: Task) -> None:
    """
    Reach the dependency, then fail for a reason of its own.
    """
    dependency.call(self.request.id)
    raise ValueError(self.request.id)


#: A task that waits in its own queue cannot be kept apart: there such a task is refused.
IN_OWN_QUEUE = os.environ["TEST_BROKER_URL"].startswith("filesystem") and os.environ.get("OMNI_PARKING") != "store"


@app.task(
    base=CircuitBreakerTask,
    circuit="dep",
    bind=True,
    max_retries=0,
    max_hold=2,
    on_hold_expired="fail" if IN_OWN_QUEUE else "dead_letter",
)
def kept(self: Task) -> str:
    """Call the dependency; kept as a dead letter when it has been held for two seconds."""
    dependency.call(self.request.id)
    return str(self.request.id)


@app.task(base=CircuitBreakerTask, circuit="dep", bind=True, max_retries=0)
def add(self: Task, x: int, y: int) -> int:
    """Call the dependency and add two numbers."""
    dependency.call(self.request.id)
    return x + y


@app.task
def plain_add(x: int, y: int) -> int:
    """Add two numbers; no circuit."""
    return x + y


@app.task(base=CircuitBreakerTask, circuit="dep", bind=True, max_retries=0)
def total(self: Task, numbers: list[int]) -> int:
    """Call the dependency and add up."""
    dependency.call(self.request.id)
    return sum(numbers)


@app.task(base=CircuitBreakerTask, circuit="dep", bind=True, max_retries=0)
def become(self: Task, depth: int) -> int:
    """Call the dependency, then be replaced: by itself, and in the end by a chain."""
    dependency.call(self.request.id)
    if depth:
        return int(self.replace(become.s(depth - 1)))
    return int(self.replace(add.s(1, 2) | add.s(3)))


@app.task
def note(_request: Any, error: Any, _traceback: Any) -> None:
    """Be told of a failure."""
    (dependency.folder / "told").write_text(type(error).__name__)


@app.task(base=CircuitBreakerTask, circuit="dep", bind=True, max_retries=0, hold_key=lambda city: city)
def refresh(self: Task, city: str) -> str:
    """Call the dependency; one for each city is enough."""
    dependency.call(self.request.id)
    return city


@app.task(base=CircuitBreakerTask, circuit="dep", bind=True, max_retries=0, good_probe=True)
def cheap(self: Task) -> str:
    """Call the dependency; a good probe."""
    dependency.call(self.request.id)
    return str(self.request.id)


class EndingTask(CircuitBreakerTask):
    """
    A task that may fail before its body.
    """

    abstract = True

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:  # noqa: ARG002 - Celery's own signature
        """
        Fail where the test wants it.
        """
        if list(args) == ["before_start"]:
            raise ValueError(task_id)


@app.task(base=EndingTask, circuit="dep", bind=True, max_retries=1)
def ending(self: Task, how: str) -> str:
    """End in the way that the test names."""
    if how == "retry" and self.request.retries == 0:
        raise self.retry(exc=DependencyDownError(how), countdown=0)
    if how == "lost":
        os._exit(3)
    if how in ENDINGS:
        raise ENDINGS[how]
    if how in {"soft", "hard", "terminate"}:
        time.sleep(60)
    return how


ENDINGS: dict[str, BaseException] = {
    "exception": DependencyDownError("exception"),
    "ignore": Ignore(),
    "reject": Reject("rejected", requeue=False),
    "exit": SystemExit(3),
}


@app.task(base=CircuitBreakerTask, circuit="outer", bind=True, max_retries=0)
def nested(self: Task, seconds: float = 0.0) -> int:
    """Call the dependency through its own circuit, inside a task of another."""
    manager = get_circuit_breaker_manager()
    (dependency.folder / "begun").touch()
    time.sleep(seconds)
    try:
        manager.call("dep", dependency.call, self.request.id)
    finally:
        (dependency.folder / "ended").touch()
    return int(getattr(self.request, "omni_holds", 0))


@app.task(base=CircuitBreakerTask, circuit="outer", bind=True, max_retries=0)
def elsewhere(self: Task) -> str:
    """A task of another circuit."""
    return str(self.request.id)


@app.task(base=CircuitBreakerTask, circuit="outer", bind=True, max_retries=0, acks_late=True)
def nested_late(self: Task, seconds: float) -> None:
    """Sleep, then call the dependency through its own circuit; acknowledged when done."""
    time.sleep(seconds)
    get_circuit_breaker_manager().call("dep", dependency.call, self.request.id)


@app.task(base=CircuitBreakerTask, circuit="dep", circuit_key=lambda model: model, bind=True, max_retries=0)
def keyed(self: Task, model: str) -> str:
    """Call the dependency for one of its models; the model ``well`` never fails."""
    if model != "well":
        dependency.call(self.request.id)
    return model


def _no_key() -> str:
    raise LookupError


@app.task(base=CircuitBreakerTask, circuit="dep", circuit_key=_no_key, bind=True, max_retries=0)
def badly_keyed(self: Task) -> str:
    """Call the dependency; the key function raises."""
    dependency.call(self.request.id)
    return str(self.request.id)


def _answer(model: str, *, reason: Exception) -> list[str]:
    return [model, type(reason).__name__]


@app.task(base=CircuitBreakerTask, circuit="dep", circuit_fallback=_answer, bind=True, max_retries=0)
def answering(self: Task, model: str) -> list[str]:
    """Call the dependency; answer with a fallback where the circuit refuses."""
    dependency.call(self.request.id)
    return [model]


class Parent(CircuitBreakerTask):
    """
    A class-based task with a body of its own.
    """

    circuit = "dep"
    name = "tests.support.app.parent"

    def run(self) -> str:
        """
        Call the dependency.
        """
        dependency.call(self.request.id)
        return str(self.request.id)


class Child(Parent):
    """
    A task whose body uses its parent's.
    """

    name = "tests.support.app.child"

    def run(self) -> str:
        """
        Call the parent's body.
        """
        return super().run()


app.register_task(Child())


def _die(owner: type, name: str, *, after: bool = False, when: Callable[..., bool] = lambda *_a, **_o: True) -> None:
    """
    Kill this worker's process group before, or right after, that method.
    """
    method = getattr(owner, name)

    def dying(*arguments: Any, **options: Any) -> Any:
        result = method(*arguments, **options) if after else None
        if when(*arguments, **options):
            os.killpg(0, signal.SIGKILL)
        return result if after else method(*arguments, **options)

    setattr(owner, name, dying)


def _parks(*_arguments: Any, circuit: str = "") -> bool:
    return bool(circuit)


def _moves(_self: Any, _of: Any, what: Any, *_more: Any, **_options: Any) -> bool:
    return bool(what)


match os.environ.get("TEST_CRASH"):
    case "before parking":
        _die(Lot, "park")
        _die(HoldingQueues, "park")
    case "parked, not noted":
        _die(Ledger, "add", when=_parks)
    case "parked":
        for place in (Lot, StoreLot, HoldingQueues):
            _die(place, "park", after=True)
    case "acknowledged":
        _die(Message, "ack", after=True)
    case "before moving":
        _die(Lot, "_move", when=_moves)
        _die(HoldingQueues, "_return", when=lambda _self, _channel, _name, fetched, _ticket: bool(fetched))
    case "moved, not noted":
        _die(Ledger, "add", when=lambda *_a, circuit="": not circuit)
    case "moved":
        _die(Lot, "_move", after=True, when=_moves)
        _die(Ledger, "add", after=True, when=lambda *_a, circuit="": not circuit)


if os.environ.get("TEST_CRASH") == "after_fire":
    _fire = MonitorState.fire

    def _fire_and_die(self: MonitorState, changes: Any, *, now_ms: int) -> list[bool]:
        began = _fire(self, changes, now_ms=now_ms)
        crashed = Path(os.environ["TEST_FOLDER"]) / "crashed"
        if any(began) and not crashed.exists():
            crashed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return began

    MonitorState.fire = _fire_and_die  # type: ignore[method-assign] # the crash that is tested


if "TEST_SLOW_RETRY" in os.environ:
    _mark_as_retry = app.backend.mark_as_retry

    def _mark_slowly(*arguments: Any, **options: Any) -> Any:
        time.sleep(float(os.environ["TEST_SLOW_RETRY"]))
        return _mark_as_retry(*arguments, **options)

    type(app.backend).mark_as_retry = staticmethod(_mark_slowly)


if "TEST_BACKEND_PAUSE" in os.environ:
    telling._PAUSE = float(os.environ["TEST_BACKEND_PAUSE"])


if os.environ.get("TEST_BROKEN_GATE"):

    def _broken(*_arguments: Any, **_options: Any) -> Any:
        raise RuntimeError("the gate is broken")

    CircuitRequest.pass_gate = _broken  # type: ignore[method-assign] # the fault that is tested
