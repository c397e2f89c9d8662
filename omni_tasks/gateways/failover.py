"""
Asking providers in turn, each behind its own circuit, until one delivers.

The next provider is asked when the one before refuses at its circuit, or fails for a
reason of its own; never for a bad request, which the next one would not like either.
When none delivered and every circuit now refuses, the answer is the refusal that ends
first: a task that gets it is held until then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from omni_tasks.api import circuit_breaker
from omni_tasks.errors import CircuitOpenError
from omni_tasks.events import log
from omni_tasks.gateways.config import GatewayConfig, Provider
from omni_tasks.gateways.errors import ProviderError
from omni_tasks.manager import get_circuit_breaker_manager

__all__ = ["CIRCUIT", "Served", "Target", "afirst_answer", "circuit_of", "first_answer"]

CIRCUIT = "ai_providers"

T = TypeVar("T")


@dataclass(frozen=True)
class Target:
    """
    One provider that may be asked.

    Attributes:
        provider: Whom to ask.

        config: How; resolved.
    """

    provider: Provider
    config: GatewayConfig

    @property
    def circuit(self) -> str:
        """
        Key of the circuit in front of it.
        """
        return circuit_of(self.provider.name, self.config.model if self.config.circuit_per_model else None)


@dataclass(frozen=True)
class Served(Generic[T]):
    """
    What was delivered at last, and by whom.

    Attributes:
        target: The provider that delivered.

        answer: What it delivered.

        attempts: Requests sent to any provider, this one's included, >= 1.

        passed_over: Names of the providers that refused or failed before, in order.
    """

    target: Target
    answer: T
    attempts: int
    passed_over: tuple[str, ...]


def circuit_of(provider: str, model: str | None = None) -> str:
    """
    Name the circuit of a provider, or of one model of it.
    """
    return ":".join([CIRCUIT, provider, *([model] if model else [])])


def first_answer(targets: Sequence[Target], ask: Callable[[Target], T], trace_id: str) -> Served[T]:
    """
    Ask *targets* in turn.

    Args:
        targets: The providers, the preferred one first; at least one.

        ask: Asks one of them; called under that one's circuit.

        trace_id: For the log.

    Raises:
        ProviderError: That of the first provider whose circuit would still let a call through; or a bad request's.

        CircuitOpenError: Every circuit refuses; this one can be tried first.
    """
    story = _Story(trace_id)
    for target in targets:
        counts = _counts(target)
        try:
            answer = circuit_breaker(target.circuit)(ask)(target)
        except (CircuitOpenError, ProviderError) as error:
            if story.ends_with(target, error, counted=counts):
                raise
        else:
            return story.served(target, answer)
    raise story.verdict()


async def afirst_answer(targets: Sequence[Target], ask: Callable[[Target], Awaitable[T]], trace_id: str) -> Served[T]:
    """
    Ask *targets* in turn, on an event loop; otherwise as :func:`first_answer`.
    """

    async def asked(target: Target) -> T:
        return await ask(target)

    story = _Story(trace_id)
    for target in targets:
        counts = _counts(target)
        try:
            answer = await circuit_breaker(target.circuit)(asked)(target)
        except (CircuitOpenError, ProviderError) as error:
            if story.ends_with(target, error, counted=counts):
                raise
        else:
            return story.served(target, answer)
    # In a thread: it asks the store, and a slow answer must not stop the event loop.
    raise await asyncio.to_thread(story.verdict)


@dataclass
class _Story:
    """
    What has come of the providers asked so far.
    """

    trace_id: str
    misses: list[tuple[Target, CircuitOpenError | ProviderError]] = field(default_factory=list)

    def ends_with(self, target: Target, error: CircuitOpenError | ProviderError, *, counted: bool) -> bool:
        """
        Note that a provider did not deliver.

        Args:
            target: The provider.

            error: Why it did not.

            counted: Whether its own circuit has heard of it.

        Returns:
            Whether no other provider is to be asked: the next would not like this request either.
        """
        failed = isinstance(error, ProviderError)
        if _logs():
            log.warning(
                "provider_failed" if failed else "provider_refused",
                component=target.circuit,
                provider=target.provider.name,
                trace_id=self.trace_id,
                error=type(error).__name__,
                status=getattr(error, "status", None),
                retry_after=error.retry_after,
            )
        if isinstance(error, ProviderError):
            if error.circuit_outcome == "ignored":
                return True
            if counted:
                error.circuit_outcome = "ignored"
        self.misses.append((target, error))
        return False

    def served(self, target: Target, answer: T) -> Served[T]:
        """
        Note that a provider delivered.
        """
        sent = sum(isinstance(error, ProviderError) for _, error in self.misses)
        passed_over = tuple(missed.provider.name for missed, _ in self.misses)
        if _logs():
            log.info(
                "provider_served",
                component=target.circuit,
                provider=target.provider.name,
                trace_id=self.trace_id,
                attempts=sent + 1,
                passed_over=passed_over,
            )
        return Served(target, answer, sent + 1, passed_over)

    def verdict(self) -> CircuitOpenError | ProviderError:
        """
        Make the error for the case that nobody delivered.
        """
        _, first = self.misses[0]
        if len(self.misses) == 1:
            return first
        refusals = []
        for target, error in self.misses:
            refusal = _refusal(target, error)
            if refusal is None:
                # Whoever may still be asked: a retry can help there.
                return error
            refusals.append(refusal)
        return min(refusals, key=lambda refusal: refusal.retry_after)


def _refusal(target: Target, error: CircuitOpenError | ProviderError) -> CircuitOpenError | None:
    """
    The refusal that a provider's circuit answers with now; ``None`` when it would let a call through.
    """
    if isinstance(error, CircuitOpenError):
        return error
    breaker = get_circuit_breaker_manager().get(target.circuit)
    metrics = breaker.get_metrics()
    if metrics.retry_after <= 0:
        return None
    return CircuitOpenError(breaker.config.name, metrics.state.value, metrics.retry_after)


def _counts(target: Target) -> bool:
    """
    Whether the circuit in front of *target* itself hears how the call ends; else somebody further out does.
    """
    manager = get_circuit_breaker_manager()
    breaker = manager.get(target.circuit)
    return manager.enabled and breaker.enabled and not breaker.is_held


def _logs() -> bool:
    return get_circuit_breaker_manager().settings.enable_resilience_logging
