"""
What a worker looks at before it starts: what it refuses, and what it only warns of.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery import signals as celery_signals
from kombu.utils.imports import symbol_by_name

from omni_tasks.core.keys import SEPARATOR, key_text
from omni_tasks.core.policy import FALLBACK_ON
from omni_tasks.errors import ConfigurationError
from omni_tasks.events import log
from omni_tasks.integration.eta import EtaQueue
from omni_tasks.integration.fetch import Transport
from omni_tasks.integration.install import Integration, find_integration
from omni_tasks.integration.places import visibility_timeout
from omni_tasks.integration.request import CircuitRequest
from omni_tasks.integration.task import is_guarded
from omni_tasks.observe import logs
from omni_tasks.observe.sink_entries import open_sinks
from omni_tasks.settings import HOLD_ENDS, redacted

if TYPE_CHECKING:
    from celery import Celery, Task

__all__ = ["check", "warnings"]

logger = logging.getLogger(__name__)

#: How a configuration names our own way to fetch.
OUR_FETCH = f"{Transport.__module__}:{Transport.__name__}"


def check(integration: Integration) -> None:
    """
    Refuse to start with a wrong setting; say at once when the shared store is away.

    Raises:
        ConfigurationError: A setting is wrong, or a task could not be held or counted as it is defined.
    """
    settings, manager = integration.settings, integration.manager
    logs.use(settings)
    open_sinks(settings)
    if not settings.enable_resilience:
        return
    _check_fetch(integration.app)
    # Refuses settings under which no task can be held.
    _ = integration.lot
    for circuit in settings.pause_queues.values():
        _check_circuit(integration, "omni_pause_queues", circuit)
    for task in integration.app.tasks.values():
        if getattr(task, "circuit", None) is not None:
            _check_task(integration, task)
    manager.get_all_metrics()
    if manager.degraded:
        log.error("omni_redis_url_unreachable", redis_url=redacted(str(settings.redis_url)))


def _check_fetch(app: Celery) -> None:
    connection = app.connection_for_read()
    scheme = str([*connection.alt, app.conf.broker_read_url or "amqp://"][0]).partition("://")[0]
    if issubclass(connection.get_transport_cls(), Transport) and scheme not in {"redis", "rediss"}:
        raise ConfigurationError("broker_transport", OUR_FETCH, f"left out with a {scheme}:// broker: it is Redis's")


def _check_circuit(integration: Integration, option: str, circuit: str) -> None:
    if integration.manager.find(circuit) is None:
        raise ConfigurationError(option, circuit, f"one of {', '.join(integration.manager.configured())}")


def _check_task(integration: Integration, task: Task) -> None:
    _check_circuit(integration, f"circuit of task {task.name}", task.circuit)
    _check_key(task, task.circuit)
    _check_fallback(task)
    request = symbol_by_name(task.Request)
    if not issubclass(request, CircuitRequest):
        # Without our side of the request, a refused task would be acknowledged and gone.
        raise ConfigurationError(f"Request of task {task.name}", task.Request, "a subclass of CircuitRequest")
    if not is_guarded(task):
        # Given after the class was made, by an annotation: refused at the gate, but never counted.
        raise ConfigurationError(f"circuit of task {task.name}", task.circuit, "given where the task is defined")
    hold, end = task.max_hold, task.on_hold_expired
    if hold is not None and (not isinstance(hold, (int, float)) or isinstance(hold, bool) or not hold >= 0):
        raise ConfigurationError(f"max_hold of task {task.name}", hold, "seconds, at least 0, or None")
    if end is not None and end not in HOLD_ENDS:
        raise ConfigurationError(f"on_hold_expired of task {task.name}", end, "one of " + ", ".join(HOLD_ENDS))
    if (end or integration.settings.on_hold_expired) == "dead_letter" and isinstance(integration.lot, EtaQueue):
        # There a message always comes back by itself.
        raise ConfigurationError(f"on_hold_expired of task {task.name}", "dead_letter", "fail with this broker")


def _check_key(task: Task, circuit: str) -> None:
    key = getattr(task, "circuit_key", None)
    if key is None:
        return
    if SEPARATOR in circuit:
        raise ConfigurationError(f"circuit_key of task {task.name}", key, f"left out: {circuit!r} has a key already")
    if not callable(key) and key_text(key) is None:
        raise ConfigurationError(
            f"circuit_key of task {task.name}", key, "a function of its arguments, or 1-200 printable characters"
        )


def _check_fallback(task: Task) -> None:
    on = getattr(task, "circuit_fallback_on", "refused")
    if on not in FALLBACK_ON:
        raise ConfigurationError(f"circuit_fallback_on of task {task.name}", on, "one of " + ", ".join(FALLBACK_ON))


def warnings(integration: Integration) -> list[str]:
    """
    Settings under which a promise does not hold; one line each.
    """
    if not integration.settings.enable_resilience:
        return []
    app = integration.app
    guarded = [task for task in app.tasks.values() if getattr(task, "circuit", None) is not None]
    return [line for task in guarded for line in _of_task(app, task)] + _of_times(integration) + _of_broker(app)


def _of_task(app: Celery, task: Task) -> list[str]:
    limit = task.time_limit or app.conf.task_time_limit
    waits = visibility_timeout(app)
    if not limit:
        return [
            f"task {task.name} has no time_limit: as a probe that hangs it keeps the circuit waiting for probe_lease"
        ]
    if task.acks_late and limit >= waits:
        again = f"the broker delivers an unacknowledged message again after {waits:g} s (visibility_timeout)"
        return [f"task {task.name} may run for {limit:g} s, but {again}: it may run twice"]
    return []


def _of_times(integration: Integration) -> list[str]:
    conf, settings = integration.app.conf, integration.settings
    found = []
    expires = conf.result_expires
    seconds = expires.total_seconds() if hasattr(expires, "total_seconds") else float(expires or 0)
    for key, config in settings.circuits.items():
        if seconds and config.recovery_timeout > seconds:
            found.append(
                f"circuit {key} stays open for {config.recovery_timeout:g} s, but results are forgotten after "
                f"{seconds:g} s (result_expires): a chord with a held member would never end"
            )
    return found


def _of_broker(app: Celery) -> list[str]:
    options = app.conf.broker_transport_options or {}
    connection = app.connection_for_write()
    scheme = str(connection.transport_cls)
    found = []
    if scheme in {"amqp", "amqps", "pyamqp"} and not options.get("confirm_publish"):
        found.append(
            "broker_transport_options has no confirm_publish: what retry() and delay() publish is lost when "
            "RabbitMQ dies before it has written it"
        )
    if issubclass(connection.get_transport_cls(), Transport) and len(connection.alt) > 1:
        # kombu's Connection.switch() goes by the scheme of the next URL.
        found.append(
            "broker_url names several brokers: from the second on kombu fetches in its own way, and a worker that is "
            "killed loses what it has not noted yet"
        )
    # Over a Unix socket the URL's own word for the transport counts, and nothing else can be named.
    if scheme in {"redis", "rediss"} and not connection.uri_prefix:
        found.append(
            "broker_transport is kombu's: a worker that is killed loses what it has taken off its list in Redis and "
            f"not noted yet; {OUR_FETCH} notes it in the same step"
        )
    return found


@celery_signals.worker_init.connect(weak=False)
def _check_worker(sender: Any, **_kwargs: Any) -> None:
    integration = find_integration(sender.app)
    if integration is None:
        return
    integration.read_settings_again()
    try:
        check(integration)
    except ConfigurationError as error:
        # A signal's receiver cannot raise, but it can end the process: one line instead of a traceback.
        raise SystemExit(f"omni_tasks: {error}") from None


@celery_signals.celeryd_after_setup.connect(weak=False)
def _warn_worker(instance: Any, **_kwargs: Any) -> None:
    # Not before: the log is set up by then, and all tasks are known.
    integration = find_integration(instance.app)
    for line in warnings(integration) if integration else ():
        logger.warning("omni_tasks: %s", line)
