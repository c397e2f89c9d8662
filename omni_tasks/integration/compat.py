"""
What differs between the versions and the pools of Celery that we run on, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery.concurrency.thread import TaskPool as ThreadPool

__all__ = ["consume_again", "queues_in_pool", "when_done"]


def queues_in_pool(pool: Any) -> bool:
    """
    Whether the pool takes more tasks than it runs, and keeps the others in a queue of its own.

    Prefork has a semaphore in front and solo runs one at a time.  Threads take
    everything at once, and greenlets make the worker's own greenlet wait.

    Source:
        Celery 5.7: ``celery.worker.components.Pool.create``, ``celery.concurrency``.
    """
    return bool(pool.is_green) or isinstance(pool, ThreadPool)


def consume_again(consumer: Any, queue: str) -> None:
    """
    Consume a queue that ``cancel_task_queue`` has given up, now and on later connections.

    Before 5.7 Celery itself takes it up for this connection only.

    Source:
        Celery 5.4: ``celery.worker.consumer.Consumer.add_task_queue``, ``celery.app.amqp.Queues.deselect``.
    """
    queues = consumer.app.amqp.queues
    queues.select_add(queues[queue])
    consumer.add_task_queue(queue)


def when_done(pool: Any, result: Any, callback: Callable[[], None]) -> None:
    """
    Call *callback* when a pool of that kind is through with a task, however the task ended.

    Source:
        Celery 5.7: ``on_apply`` of ``celery.concurrency.thread``, ``gevent`` and ``eventlet``.
    """
    if isinstance(pool, ThreadPool):
        result.f.add_done_callback(lambda _future: callback())
    else:
        # A link is called where nothing may wait.
        result.link(lambda _greenlet: pool.spawn_n(callback))
