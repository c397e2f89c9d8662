"""
The calls that a busy process lets into quiet circuits, until it has told the circuits of them.

What a circuit says of itself, and what it hears afterwards, is in :mod:`omni_tasks.core.quiet`.
"""

from __future__ import annotations

import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.util import Finalize
from typing import NamedTuple

from omni_tasks.core import durations
from omni_tasks.core.model import Permit, Request
from omni_tasks.core.outcome import Outcome, Report
from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.core.quiet import Told
from omni_tasks.errors import StoreError

__all__ = ["LONGEST_WAIT", "QuietCalls", "QuietCircuit", "tell_all"]

#: Seconds after which a circuit is told of a call that was let in, or has ended.
LONGEST_WAIT = 0.1

#: A process is busy with a circuit while it asks again within so many seconds: elsewhere nothing is gained.
_SOON_S = 0.02

#: Circuits that a process keeps in mind; the calls of any more are told at once.
_MOST = 10_000

#: Digits of an epoch; what has more was written by nobody of us.
_MOST_DIGITS = 14

#: Seconds with nothing to tell after which the thread that tells ends.
_IDLE_S = 5.0


class _Word(NamedTuple):
    """
    What a quiet circuit has said, as it was stored and as it was meant.
    """

    stored: bytes
    epoch: int
    gen: str

    @classmethod
    def read(cls, answer: object) -> _Word | None:
        if not isinstance(answer, bytes):
            return None
        epoch, _, gen = answer.partition(b" ")
        if not (epoch.isdigit() and len(epoch) <= _MOST_DIGITS and gen):
            return None
        return cls(answer, int(epoch), gen.decode(errors="surrogateescape"))


class QuietCircuit:
    """
    One circuit as one process knows it.  Thread-safe: what is done for each call is one step of the interpreter.
    """

    def __init__(self, config: CircuitBreakerConfig, question: bytes, send: Callable[[Told], object]) -> None:
        """
        Know nothing yet.

        Args:
            config: The circuit's, as this process has it.

            question: What asks for the circuit's word, packed.

            send: Tells the circuit; raises ``StoreError`` when it could not.
        """
        self.config = config
        self.question = question
        self._send = send
        self._only_counts = not (config.policy.failure_rate_ppm or config.policy.slow_rate_ppm)
        self._asked_monotonic = -math.inf
        self._is_quiet = False
        self._word: _Word | None = None
        self._running: dict[str, tuple[_Word, int]] = {}
        self._ended: deque[tuple[_Word, int]] = deque()
        # A signal's handler may report or read, too, in the thread that is telling.
        self._telling = threading.RLock()
        self._is_telling = False
        self._began_monotonic = self._failed_monotonic = -math.inf

    def hear(self, *, quiet: bool) -> None:
        """
        Hear from the rules whether the circuit is quiet.
        """
        self._is_quiet = quiet

    def asked_soon_again(self) -> bool:
        """
        Note that this process asks, and say whether to ask for the circuit's word.

        It was quiet when last heard of, and this process asks so often that it may hear of the calls later.
        """
        now = time.monotonic()
        gap_s, self._asked_monotonic = now - self._asked_monotonic, now
        return gap_s < _SOON_S and self._is_quiet and self._only_counts

    def admit(self, answer: object, request: Request) -> Permit | None:
        """
        Let a call in by the circuit's own word, *answer*; ``None`` where it is not quiet.
        """
        word = self._word
        if word is None or word.stored != answer:
            self._word = word = _Word.read(answer)
            if word is None:
                self._is_quiet = False
                return None
        self._running[request.permit_id] = word, request.lease_ms
        return Permit(request.permit_id, word.gen, word.epoch, probe=False)

    def end(self, permit: Permit, report: Report) -> bool:
        """
        Hear of a call's end.

        Returns:
            Whether that is all: if not, the circuit has been told of all that was before, and must be told of this.

        Raises:
            StoreError: The circuit could not be told.
        """
        known = self._running.pop(permit.id, None)
        if known is not None:
            if report.outcome is Outcome.SUCCESS:
                self._ended.append((known[0], report.duration_ms))
                return True
            self._running[permit.id] = known
        self.tell()
        return False

    @property
    def is_untold(self) -> bool:
        """
        Whether there is anything to tell, or another thread is telling it.
        """
        return bool(self._running or self._ended or self._is_telling)

    def tell(self) -> bool:
        """
        Tell the circuit all that it does not know; where another thread has begun to do so since, only wait for it.

        Never repeated: what a lost answer leaves in doubt is not counted twice, but may not be counted.

        Returns:
            Whether there was anything to tell.

        Raises:
            StoreError: It could not be told; or the thread that was waited for could not tell it.
        """
        began = time.monotonic()
        with self._telling:
            if self._failed_monotonic > began:
                raise StoreError(f"tally {self.config.name!r}: given up with another thread that had waited too long")
            if self._began_monotonic > began:
                # Told with what another thread had to tell: threads must not queue up for one round trip each.
                return True
            self._began_monotonic, self._is_telling = time.monotonic(), True
            untold = self._untold()
            try:
                for told in untold:
                    self._send(told)
            except StoreError:
                self._failed_monotonic = time.monotonic()
                # A server that only reads goes on giving its word: let the rules meet the next call, and what is wrong.
                self._asked_monotonic = -math.inf
                raise
            finally:
                self._is_telling = False
            return bool(untold)

    def _untold(self) -> list[Told]:
        running: dict[_Word, dict[str, int]] = {}
        ended: dict[_Word, list[int]] = {}
        with suppress(KeyError):
            while True:
                permit_id, (word, lease_ms) = self._running.popitem()
                running.setdefault(word, {})[permit_id] = lease_ms
        with suppress(IndexError):
            while True:
                word, duration_ms = self._ended.popleft()
                ended.setdefault(word, []).append(duration_ms)
        return [self._told(word, running.get(word, {}), ended.get(word, [])) for word in running.keys() | ended.keys()]

    def _told(self, word: _Word, running: dict[str, int], took_ms: list[int]) -> Told:
        slow_ms = self.config.policy.slow_ms
        return Told(
            gen=word.gen,
            epoch=word.epoch,
            running=running,
            succeeded=len(took_ms),
            slow=sum(slow_ms <= each for each in took_ms) if slow_ms else 0,
            took_ms=sum(took_ms),
            durations=durations.written(filter(None, took_ms)),
        )


class QuietCalls:
    """
    The quiet circuits of one process in one store.  Thread-safe.
    """

    def __init__(self, make: Callable[[CircuitBreakerConfig], QuietCircuit]) -> None:
        """
        Keep what *make* makes.
        """
        self._make = make
        self._circuits: dict[str, QuietCircuit] = {}
        self._thread: threading.Thread | None = None
        _all.add(self)

    def of(self, config: CircuitBreakerConfig) -> QuietCircuit | None:
        """
        The circuit of *config*, whether it is quiet or not; ``None`` where there is no room for it.
        """
        known = self._circuits.get(config.name)
        if known is None and len(self._circuits) < _MOST:
            known = self._circuits.setdefault(config.name, self._make(config))
        if known is None or not (known.config is config or known.config == config):
            return None
        return known

    def known(self, name: str) -> QuietCircuit | None:
        """
        The circuit of that name, if a call was ever let into it here.
        """
        return self._circuits.get(name)

    def keep_telling(self) -> None:
        """
        See to it that the circuits hear of what was let in: from a thread, while there is anything to tell.
        """
        if self._thread is not None:
            return
        _tell_at_end()
        try:
            self._thread = threading.Thread(target=self._tell_often, name="omni-quiet", daemon=True)
            self._thread.start()
        except RuntimeError:
            # The interpreter is ending: nobody would tell any more.
            self._thread = None
            self.tell()
        except BaseException:
            # A time limit or a signal: the next call starts another.
            self._thread = None
            raise

    def tell(self) -> bool:
        """
        Tell every circuit, up to one that cannot be told: a store that is silent costs one wait.

        Returns:
            Whether there was anything to tell.
        """
        told = False
        with suppress(StoreError):
            for circuit in tuple(self._circuits.values()):
                if circuit.is_untold:
                    told |= circuit.tell()
        return told

    def _tell_often(self) -> None:
        # The thread keeps what is untold, also where nobody else needs this store any more.
        told_monotonic = time.monotonic()
        try:
            while time.monotonic() - told_monotonic < _IDLE_S:
                time.sleep(LONGEST_WAIT)
                if self.tell():
                    told_monotonic = time.monotonic()
        finally:
            # Whatever else ends it, the next call starts another.
            self._thread = None
        # What was let in while this round looked away.
        self.tell()

    def _start_anew(self) -> None:
        self._circuits = {}
        self._thread = None


_all: weakref.WeakSet[QuietCalls] = weakref.WeakSet()


def _after_fork() -> None:
    # What the parent has let in, the parent tells.
    for calls in tuple(_all):
        calls._start_anew()  # noqa: SLF001 - of this module


os.register_at_fork(after_in_child=_after_fork)


def tell_all() -> None:
    """
    Tell every circuit now; for a process that ends in a way of its own.
    """
    for calls in tuple(_all):
        calls.tell()


_end_seen_to_in: int | None = None


def _tell_at_end() -> None:
    # When this process ends, also one that multiprocessing has started and that knows no atexit.  Once in each:
    # what is registered is kept for good.
    global _end_seen_to_in  # noqa: PLW0603 - of the process, as what it notes
    if _end_seen_to_in != os.getpid():
        _end_seen_to_in = os.getpid()
        Finalize(None, tell_all, exitpriority=10)
