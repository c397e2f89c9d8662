"""
Every exception a caller can catch.

::

    OmniTasksError
    ├── CircuitOpenError        the circuit refused; nothing ran
    ├── ConfigurationError      a setting is wrong (also a ValueError)
    ├── UnknownCircuitError     no circuit is configured under that name (also a LookupError)
    ├── StoreError              the shared store did not answer in time
    │   └── StoreReplyError     the store answered with something that is not ours
    ├── ParkingError            a task could not be set aside
    └── HoldExpiredError        a task has been held for as long as it may be, and has not run

The gateways add their own branch, ``ProviderError``, in
:mod:`omni_tasks.gateways.errors`.  All of them survive pickling with every field.
"""

from __future__ import annotations

__all__ = [
    "CircuitOpenError",
    "ConfigurationError",
    "HoldExpiredError",
    "OmniTasksError",
    "ParkingError",
    "StoreError",
    "StoreReplyError",
    "UnknownCircuitError",
]


class OmniTasksError(Exception):
    """
    Root of the tree.
    """


class CircuitOpenError(OmniTasksError):
    """
    The circuit refused the call: nothing ran and no attempt was used.

    Attributes:
        circuit: Name of the circuit that refused.

        state: ``"open"`` or ``"half_open"``.

        retry_after:
            Seconds until asking again can help, > 0.  A lower bound: another
            worker may take the probe first.
    """

    # Neutral evidence, whoever classifies it: the dependency was not asked.
    circuit_outcome = "ignored"

    def __init__(self, circuit: str, state: str, retry_after: float) -> None:
        """
        Refuse a call of *circuit* for *retry_after* seconds.
        """
        super().__init__(circuit, state, retry_after)
        self.circuit = circuit
        self.state = state
        self.retry_after = retry_after

    def __str__(self) -> str:
        """
        Say which circuit refuses, and for how long.
        """
        return f"circuit {self.circuit!r} is {self.state}; try again in {self.retry_after:.3g} s"


class ConfigurationError(OmniTasksError, ValueError):
    """
    A setting is wrong.  One line: the option, its value, what is allowed.
    """

    def __init__(self, option: str, value: object, allowed: str) -> None:
        """
        Refuse *value* for *option*; *allowed* finishes "must be ...".
        """
        super().__init__(option, value, allowed)
        self.option = option
        self.value = value
        self.allowed = allowed

    def __str__(self) -> str:
        """
        Name the option, the value and what would be right.
        """
        return f"{self.option} must be {self.allowed}, got {self.value!r}"


class UnknownCircuitError(OmniTasksError, LookupError):
    """
    No circuit is configured under that name.
    """

    def __init__(self, circuit: str, known: tuple[str, ...]) -> None:
        """
        Refuse *circuit*; *known* are the names that would have worked.
        """
        super().__init__(circuit, known)
        self.circuit = circuit
        self.known = known

    def __str__(self) -> str:
        """
        Name the circuit that is missing and those that are there.
        """
        there = ", ".join(sorted(self.known)) or "none"
        return f"no circuit {self.circuit!r} is configured (configured: {there}); add it to omni_circuits"


class StoreError(OmniTasksError):
    """
    The shared store did not answer in time, or refused the command.
    """


class StoreReplyError(StoreError):
    """
    The store answered with something this version cannot read.
    """


class ParkingError(OmniTasksError):
    """
    A task could not be set aside durably.  Its message must stay unacknowledged.
    """


class HoldExpiredError(OmniTasksError):
    """
    A task has been held for as long as it may be (``max_hold``).  It has not run.

    Attributes:
        circuit: Key of the circuit it waited for.

        held_for: Seconds since it was first held.
    """

    # Neutral evidence: the dependency was not asked.
    circuit_outcome = "ignored"

    def __init__(self, circuit: str, held_for: float) -> None:
        """
        End a task that waited for *circuit* for *held_for* seconds.
        """
        super().__init__(circuit, held_for)
        self.circuit = circuit
        self.held_for = held_for

    def __str__(self) -> str:
        """
        Say which circuit it waited for, and how long.
        """
        return f"held for circuit {self.circuit!r} for {self.held_for:.0f} s, which is as long as it may be"
