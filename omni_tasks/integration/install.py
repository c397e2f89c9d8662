"""
Installing everything on a Celery application, and finding it again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from celery import Celery
from celery import signals as celery_signals
from kombu.utils.imports import symbol_by_name

from omni_tasks.breaker import CircuitBreaker
from omni_tasks.errors import ConfigurationError
from omni_tasks.events import log
from omni_tasks.integration.broker import broker_url, open_client
from omni_tasks.integration.lot import Lot
from omni_tasks.manager import CircuitBreakerManager, use_manager
from omni_tasks.settings import ResilienceConfiguration, redacted

if TYPE_CHECKING:
    from celery import Task

__all__ = ["Integration", "get_lot", "init_app", "integration_of"]

#: kombu's default, in seconds: when an unacknowledged message is given to another worker.
_VISIBILITY_TIMEOUT = 3600.0

MONITOR_TASK = "omni_tasks.monitor"


class Integration:
    """
    What one Celery application has of us.  Everything is made on first use.

    Attributes:
        consumer: The worker's consumer while it runs, else ``None``.
    """

    def __init__(self, app: Celery) -> None:
        """
        Belong to *app*.
        """
        self.app = app
        self.consumer: Any = None

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
    def lot(self) -> Lot:
        """
        The application's held tasks.
        """
        options = self.app.conf.broker_transport_options or {}
        visibility_timeout = float(options.get("visibility_timeout", _VISIBILITY_TIMEOUT))
        prefix = f"{options.get('global_keyprefix', '')}{self.settings.key_prefix}"
        # A copy may come back once the timeout has passed, and its worker may be slow to fall silent.
        client = open_client(self.app, timeout=max(self.settings.store_timeout, 1.0))
        return Lot(client, prefix=prefix, remember=2 * visibility_timeout + 60)

    def breaker_of(self, task: Task) -> CircuitBreaker | None:
        """
        The breaker in front of *task*; ``None`` for a plain task, or with resilience disabled.

        Raises:
            UnknownCircuitError: The task names a circuit that is not configured.
        """
        circuit = getattr(task, "circuit", None)
        if circuit is None or not self.manager.enabled:
            return None
        breaker = self.manager.get(circuit)
        return breaker if breaker.enabled else None

    def call_later(self, seconds: float, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """
        Call *function* from the worker's timer.
        """
        if self.consumer is not None:
            self.consumer.timer.call_after(seconds, function, arguments)

    def check(self) -> None:
        """
        Refuse to start with a wrong setting; say at once when the shared store is away.

        Raises:
            ConfigurationError: A setting is wrong, or a task could not be held or counted as it is defined.
        """
        settings, manager = self.settings, self.manager
        if not settings.enable_resilience:
            return
        # Refuses a broker that cannot hold tasks.
        _ = self.lot
        for task in self.app.tasks.values():
            circuit = getattr(task, "circuit", None)
            if circuit is not None:
                _check_task(task, circuit, manager)
        manager.get_all_metrics()
        if manager.degraded:
            log.error("omni_redis_url_unreachable", redis_url=redacted(str(settings.redis_url)))


def _check_task(task: Task, circuit: str, manager: CircuitBreakerManager) -> None:
    # Here, not at the top: these modules need this one.
    from omni_tasks.integration.request import CircuitRequest  # noqa: PLC0415
    from omni_tasks.integration.task import is_guarded  # noqa: PLC0415

    if manager.find(circuit) is None:
        raise ConfigurationError(f"circuit of task {task.name}", circuit, f"one of {', '.join(manager.keys())}")
    request = symbol_by_name(task.Request)
    if not issubclass(request, CircuitRequest):
        # Without our side of the request, a refused task would be acknowledged and gone.
        raise ConfigurationError(f"Request of task {task.name}", task.Request, "a subclass of CircuitRequest")
    if not is_guarded(task):
        # Given after the class was made, by an annotation: refused at the gate, but never counted.
        raise ConfigurationError(f"circuit of task {task.name}", circuit, "given where the task is defined")


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
            integration.__dict__.pop("settings", None)
            integration.__dict__.pop("manager", None)
        return
    _install(app)


def _install(app: Celery) -> None:
    # Here, not at the top: these modules need this one.
    from omni_tasks.integration import control, mover  # noqa: F401, PLC0415 - control registers itself
    from omni_tasks.observe import monitor  # noqa: PLC0415

    use_manager(lambda: integration_of(app).manager)
    app.steps["consumer"].add(mover.MoverStep)

    @app.task(name=MONITOR_TASK, ignore_result=True, shared=False)
    def tick() -> dict[str, str]:
        """
        Look at every circuit once.
        """
        return monitor.tick(integration_of(app).manager)

    app.on_after_finalize.connect(_schedule_monitor, weak=False)


def _schedule_monitor(sender: Celery, **_kwargs: Any) -> None:
    interval = integration_of(sender).settings.resilience_monitoring_interval
    sender.add_periodic_task(interval, sender.signature(MONITOR_TASK), name="omni-monitor", expires=interval)


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


def get_lot(app: Celery) -> Lot:
    """
    The held tasks of *app*.
    """
    return integration_of(app).lot


@celery_signals.worker_init.connect(weak=False)
def _check_worker(sender: Any, **_kwargs: Any) -> None:
    app = sender.app
    if app not in _installed:
        return
    try:
        _installed[app].check()
    except ConfigurationError as error:
        # A signal's receiver cannot raise, but it can end the process: one line instead of a traceback.
        raise SystemExit(f"omni_tasks: {error}") from None
