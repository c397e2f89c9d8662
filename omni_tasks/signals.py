"""
Signals to connect to, the Celery way: ``circuit_opened.connect(receiver)``.

Each circuit signal is sent once in the cluster, by the process that caused the
transition, with *sender* the circuit's key and *breaker*, *transition*.  The
task signals are sent by the worker that held or released, with *sender* the
circuit's key and *task_id*, *task_name* (held) or *count* (released).  A
receiver that raises is logged and changes nothing.
"""

from __future__ import annotations

from celery.utils.dispatch import Signal

__all__ = ["circuit_closed", "circuit_half_opened", "circuit_opened", "task_held", "task_released"]

circuit_opened = Signal(name="circuit_opened", providing_args={"breaker", "transition"})
circuit_half_opened = Signal(name="circuit_half_opened", providing_args={"breaker", "transition"})
circuit_closed = Signal(name="circuit_closed", providing_args={"breaker", "transition"})
task_held = Signal(name="task_held", providing_args={"task_id", "task_name", "retry_after"})
task_released = Signal(name="task_released", providing_args={"count"})
