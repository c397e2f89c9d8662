"""
The demo's own line to the provider.
"""

from __future__ import annotations

import http.client
import json
from typing import Any, Final

from demo.calls import Call

__all__ = ["ProviderClient"]

_TIMEOUT_S: Final = 2.0


class ProviderClient:
    """
    Switches the provider and reads its book.  Not for more than one thread at a time.
    """

    def __init__(self, port: int) -> None:
        """
        Talk to the provider on *port* of the loopback interface.
        """
        self.port = port
        self._calls: list[Call] = []

    def switch(self, **wanted: object) -> None:
        """
        Change mode, latency or announced wait.

        Raises:
            OSError: The provider does not answer.
        """
        self._ask("POST", "/control", json.dumps(wanted))

    def calls(self) -> list[Call]:
        """
        Read every call so far; what is settled is not fetched twice.

        Raises:
            OSError: The provider does not answer.
        """
        settled = next((n for n, call in enumerate(self._calls) if call.answered is None), len(self._calls))
        news = self._ask("GET", f"/ledger?since={settled}")["calls"]
        self._calls[settled:] = [Call(**entry) for entry in news]
        return list(self._calls)

    def _ask(self, method: str, path: str, body: str | None = None) -> dict[str, Any]:
        # Not through a library that would send it to a proxy named in the environment.
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_TIMEOUT_S)
        try:
            connection.request(method, path, body)
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
        except (http.client.HTTPException, ValueError) as error:
            raise OSError(f"the provider on port {self.port} answered {method} {path} with nonsense") from error
        finally:
            connection.close()
        return answer
