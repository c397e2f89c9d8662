"""
Installing everything on a Celery application, and finding it again.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import redis
from celery import Celery
from celery import signals as celery_signals

from omni_tasks.breaker import CircuitBreaker
from omni_tasks.errors import ConfigurationError
from omni_tasks.integration.broker import broker_url
from omni_tasks.integration.held import Parking
from omni_tasks.integration.places import open_parking, visibility_timeout
from omni_tasks.integration.revoked import Revoked
from omni_tasks.integration.slots import Slots
from omni_tasks.integration.telling import StateWriter
from omni_tasks.integration.virtual import StampStep
from omni_tasks.keyed import breaker_for
from omni_tasks.manager import CircuitBreakerManager, use_manager
from omni_tasks.observe import logs
from omni_tasks.observe.monitor import Monitor, intervals
from omni_tasks.settings import ResilienceConfiguration
from omni_tasks.store.connect import connect
from omni_tasks.store.quiet import tell_all
from omni_tasks.store.schema import command_key

if TYPE_CHECKING:
    from celery import Task

    from omni_tasks.integration.parking import Unparked

__all__ = ["Integration", "find_integration", "get_lot", "init_app", "integration_of"]

#: How long revokes are remembered where tasks may be held for ever, in seconds.
_REVOKES_KEPT = 30 * 86_400.0

MONITOR_TASK = "omni_tasks.monitor"


class Integration:
    """
    What one Celery application has of us.  Everything is made on first use.

    Attributes:
        consumer: The worker's consumer while it runs, else ``None``.

        ramping: Circuits that limited the rate of starts when the mover asked them last.

        strays: Circuits that hold tasks and are not configured, as far as that has been logged.

        unparked: Tasks that have run and have to be held, until the lot takes them.
    """

    def __init__(self, app: Celery) -> None:
        """
        Belong to *app*.
        """
        self.app = app
        self.consumer: Any = None
        self.ramping: set[str] = set()
        self.strays: set[str] = set()
        self.unparked: deque[Unparked] = deque()

    @cached_property
    def settings(self) -> ResilienceConfiguration:
        """
        The application's settings.

        Raises:
            ConfigurationError: One of them is wrong.
        """
        settings = ResilienceConfiguration.load(self.app.conf)
        if settings.redis_url is None:
            # Workers that cannot share a circuit would each need to be hurt before they stop.
            settings = replace(settings, redis_url=broker_url(self.app))
        return settings

    @cached_property
    def manager(self) -> CircuitBreakerManager:
        """
        The application's breakers.
        """
        return CircuitBreakerManager(self.settings)

    @cached_property
    def lot(self) -> Parking:
        """
        The application's held tasks.

        Raises:
            ConfigurationError: They could not be held with these settings.
        """
        return open_parking(self.app, self.settings, lambda: self.consumer)

    @cached_property
    def dead_letters(self) -> Parking:
        """
        Tasks that have been held for as long as they may be, for an operator to look at and to replay.
        """
        apart = replace(self.settings, key_prefix=f"{self.settings.key_prefix}:dead")
        return open_parking(self.app, apart, lambda: self.consumer)

    @cached_property
    def store_client(self) -> redis.Redis | None:
        """
        A client of the shared store, for what is not a circuit's; ``None`` without a store.
        """
        settings = self.settings
        if settings.redis_url is None:
            return None
        return connect(settings.redis_url, timeout=max(settings.store_timeout, 1.0))

    def command_key(self, digest: str) -> str:
        """
        The key that says that a worker has carried a command out.
        """
        return command_key(self.settings.key_prefix, digest)

    @cached_property
    def revoked(self) -> Revoked:
        """
        What was revoked while tasks are held.
        """
        settings = self.settings
        return Revoked(self.store_client, prefix=settings.key_prefix, keep=settings.max_hold or _REVOKES_KEPT)

    @cached_property
    def states(self) -> StateWriter:
        """
        What tells the result backend that a task is held.
        """
        return StateWriter(self.app)

    @cached_property
    def slots(self) -> Slots:
        """
        The slots of a worker whose pool has a queue of its own.
        """
        return Slots()

    @property
    def longest_unacked(self) -> float:
        """
        Seconds a message may stay unacknowledged: a third of what the broker waits before it delivers it again.
        """
        return visibility_timeout(self.app) / 3

    @cached_property
    def monitor(self) -> Monitor:
        """
        The application's monitor, in this process.
        """
        # Here, not at the top: the mover needs this module.
        from omni_tasks.integration.mover import move_held_tasks  # noqa: PLC0415

        return Monitor(self.manager, lot=self.lot, move=lambda: move_held_tasks(self, sweep=True))

    def breaker_of(
        self, task: Task, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> CircuitBreaker | None:
        """
        The breaker in front of *task*; ``None`` for a plain task, or with resilience disabled.

        Args:
            task: The task.

            args: What it is called with, which its ``circuit_key`` may need.

            kwargs: The same.

        Raises:
            UnknownCircuitError: The task names a circuit that is not configured.
        """
        circuit = getattr(task, "circuit", None)
        if circuit is None or not self.manager.enabled:
            return None
        breaker = breaker_for(
            self.manager.get(circuit),
            getattr(task, "circuit_key", None),
            tuple(args),
            kwargs or {},
            where=f"task {task.name}",
        )
        return breaker if breaker.enabled else None

    def call_later(self, seconds: float, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """
        Call *function* from the worker's timer.
        """
        if self.consumer is not None:
            self.consumer.timer.call_after(seconds, function, arguments)

    def read_settings_again(self) -> None:
        """
        Take over what the configuration says now; what was made from other settings is made anew.
        """
        made = self.__dict__
        before = made.pop("settings", None)
        if before is None or before == self.settings:
            return
        for name in ("manager", "lot", "monitor", "dead_letters", "revoked", "store_client"):
            made.pop(name, None)


_installed: WeakKeyDictionary[Celery, Integration] = WeakKeyDictionary()
_installed_lock = threading.Lock()


def init_app(app: Celery, **overrides: Any) -> None:
    """
    Install the circuit breaker on a Celery application.

    Installs the settings, the mover, remote control and the monitor's beat
    entry.  Tasks opt in with ``base=CircuitBreakerTask, circuit="..."``.
    Calling it again only applies the overrides.

    Args:
        app: Any time before its worker starts.

        overrides: Settings by name, as ``omni_*`` in Celery configuration: ``redis_url=...``,
            ``circuits={...}``.  The environment is stronger.

    Raises:
        ConfigurationError: There is no such setting.
    """
    for option, value in overrides.items():
        if option not in ResilienceConfiguration.option_names():
            known = ", ".join(ResilienceConfiguration.option_names())
            raise ConfigurationError("init_app() option", option, f"one of {known}")
        app.conf[f"omni_{option}"] = value
    with _installed_lock:
        known_already = app in _installed
        integration = _installed.setdefault(app, Integration(app))
    if known_already:
        if overrides:
            integration.read_settings_again()
        return
    _install(app)


def _install(app: Celery) -> None:
    # Here, not at the top: these modules need this one.
    from omni_tasks.integration import checks, control, mover, pause  # noqa: F401, PLC0415 - two register themselves
    from omni_tasks.observe.step import ExporterStep  # noqa: PLC0415

    use_manager(lambda: integration_of(app).manager)
    logs.follow_tasks()
    app.steps["consumer"].update({StampStep, mover.MoverStep, pause.PauseStep})
    app.steps["worker"].add(ExporterStep)

    @app.task(name=MONITOR_TASK, ignore_result=True, shared=False)
    def tick() -> dict[str, str]:
        """
        Look at every circuit that is due.
        """
        integration = integration_of(app)
        return integration.monitor.tick() if integration.settings.enable_resilience else {}

    app.on_after_finalize.connect(_schedule_monitor, weak=False)


def _schedule_monitor(sender: Celery, **_kwargs: Any) -> None:
    integration = integration_of(sender)
    main = integration.settings.resilience_monitoring_interval
    for interval in sorted(intervals(integration.manager)):
        # A circuit that has an interval of its own needs ticks that come as often; what is due is found out there.
        name = "omni-monitor" if interval == main else f"omni-monitor-{interval:g}s"
        sender.add_periodic_task(interval, sender.signature(MONITOR_TASK), name=name, expires=interval)


def integration_of(app: Celery) -> Integration:
    """
    What *app* has of us.

    Raises:
        ConfigurationError: ``init_app(app)`` has not been called.
    """
    # Tasks hold a proxy of their application; the registry knows the object.
    real = app._get_current_object() if hasattr(app, "_get_current_object") else app  # noqa: SLF001 - Celery's own way
    try:
        return _installed[real]
    except KeyError:
        raise ConfigurationError("app", real, "installed with init_app(app)") from None


def find_integration(app: Celery) -> Integration | None:
    """
    What *app* has of us, or ``None``.
    """
    return _installed.get(app)


def get_lot(app: Celery) -> Parking:
    """
    The held tasks of *app*.
    """
    return integration_of(app).lot


@celery_signals.worker_process_shutdown.connect(weak=False)
def _tell_all(**_kwargs: Any) -> None:
    # A prefork child ends without atexit.
    tell_all()
