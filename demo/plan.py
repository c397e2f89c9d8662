"""
What the demo does, in numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from demo.calls import Mode

__all__ = ["CIRCUIT", "PARENT", "Plan"]

#: The circuit of all providers, which says how theirs are configured, and that of the demo's.
PARENT, CIRCUIT = "ai_providers", "ai_providers:openai"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """
    One run.  Times are in seconds.

    Attributes:
        articles: How many are asked for.  40-200, the prompts that ship with the demo.

        outage: How long the provider is dead.  > 0.

        latency: What an answer of the provider takes.  >= 0.

        concurrency: Processes in the worker's pool, so calls in flight at most.  >= 1.

        failure_threshold: Failures in a row that open the circuit.  >= 1.

        recovery_timeout: Time the circuit stays open before a probe.  > 0.

        deadline: Time from sending, after which what is not done counts as lost.  > 0.
    """

    articles: int = 200
    outage: float = 15.0
    latency: float = 0.25
    concurrency: int = 4
    failure_threshold: int = 5
    recovery_timeout: float = 3.0
    deadline: float = 90.0

    @property
    def dies_after(self) -> int:
        """
        Articles written before the provider dies: three in ten.
        """
        return self.articles * 3 // 10

    def misfortune(self, since: float) -> dict[str, Any]:
        """
        Say how the provider is dead, *since* seconds into the outage.

        Returns:
            What its ``/control`` takes.
        """
        if since < 0.4 * self.outage:
            return {"mode": Mode.ERROR500}
        if since < 0.75 * self.outage:
            return {"mode": Mode.RESET}
        return {"mode": Mode.RATE_LIMIT, "retry_after": self.recovery_timeout}

    def allowed_dead_calls(self, outage: float) -> int:
        """
        Most calls that may reach the dead provider in an outage that took *outage* seconds.

        Those that open the circuit, those in flight when it opens, then one probe per recovery window.
        """
        return self.failure_threshold + self.concurrency + self.recovery_windows(outage)

    def recovery_windows(self, outage: float) -> int:
        """
        Count the recovery timeouts that fit into *outage* seconds.
        """
        return int(outage // self.recovery_timeout)

    def circuits(self) -> dict[str, dict[str, float]]:
        """
        Write the circuit's entry in the settings (``OMNI_CIRCUITS``).
        """
        return {
            PARENT: {
                "failure_threshold": self.failure_threshold,
                "recovery_timeout": self.recovery_timeout,
                # A probe takes as long as one call; a lease of minutes is for slower dependencies.
                "probe_lease": 10.0,
            }
        }
