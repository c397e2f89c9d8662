"""
Reading what a provider answered: chat completions and responses, whole or in events.

A whole answer is read as a stream of one event, so there is one reader for each API.
The SDK does not check answers: HTML comes back as text, a wrong shape as ``None``,
a stream that was cut as one that has ended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response

__all__ = ["Answer", "ChatReader", "MalformedAnswerError", "Reader", "ReportedError", "ResponsesReader", "Seen"]


class MalformedAnswerError(Exception):
    """
    What came is not an answer; says why, and never quotes it.
    """


class ReportedError(Exception):
    """
    The provider says inside a 200 that it has failed; carries its code and type, free text never.
    """

    def __init__(self, *codes: object) -> None:
        """
        Remember what the provider calls its failure.
        """
        super().__init__(*codes)
        self.codes = codes


@dataclass(frozen=True)
class Answer:
    """
    A checked answer.

    Attributes:
        text: What the model wrote, not empty.

        model: The model that answered, which may be more exact than the one asked for; ``""`` when not said.

        prompt_tokens: Tokens of the question, >= 0; ``None`` when the provider does not count.

        completion_tokens: Tokens of the answer, likewise.

        finish_reason: ``"stop"``, or ``"length"`` for a text that was cut at ``max_tokens``.
    """

    text: str
    model: str
    prompt_tokens: int | None
    completion_tokens: int | None
    finish_reason: str


@dataclass
class Seen:
    """
    What has come of an answer so far.

    Attributes:
        pieces: Of the text, in order; anything else than text in them makes the answer malformed.

        ended: Whether the provider has said that this is all.

        reason: Why it ended, in the words of chat completions: ``"stop"``, ``"length"``, ``"content_filter"``.

        refused: Whether the model declined in so many words.
    """

    pieces: list[object] = field(default_factory=list)
    ended: bool = False
    reason: object = None
    refused: bool = False
    model: object = None
    usage: object = None

    def answer(self, refuse: Callable[[str], Exception]) -> Answer:
        """
        Check what has come.

        Args:
            refuse: Makes the error for an answer that is the provider's last word about this one request.

        Raises:
            MalformedAnswerError: It is no answer.

            Exception: What *refuse* made.
        """
        if not self.ended:
            raise MalformedAnswerError("it ended in the middle")
        if not all(isinstance(piece, str) for piece in self.pieces):
            raise MalformedAnswerError("its text is no text")
        # Half a character that JSON let through joins its other half, which may have come in another event.
        text = "".join(map(str, self.pieces)).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        # All three are about this request, and no fault of the provider's service.
        for refused, why in (
            (self.reason == "content_filter", "its content filter stopped the article"),
            (self.refused, "the model declined to write the article"),
            (self.reason == "length" and not text, "max_tokens is too small for any text"),
        ):
            if refused:
                raise refuse(why)
        if not text.strip():
            raise MalformedAnswerError("it has no text")
        return Answer(
            text=text,
            model=self.model if isinstance(self.model, str) else "",
            prompt_tokens=_count(self.usage, "prompt_tokens", "input_tokens"),
            completion_tokens=_count(self.usage, "completion_tokens", "output_tokens"),
            finish_reason=self.reason if isinstance(self.reason, str) else "",
        )


class Reader(Protocol):
    """
    Reads the answers of one API.
    """

    seen: Seen

    def take(self, event: object) -> None:
        """
        Take a whole answer, or the next event of a stream.

        Raises:
            MalformedAnswerError: It is neither.

            ReportedError: It says that the provider has failed.
        """


class ChatReader:
    """
    Reads chat completions.
    """

    def __init__(self) -> None:
        """
        Begin with nothing.
        """
        self.seen = Seen()

    def take(self, event: object) -> None:
        """
        Take a completion, or a chunk of one.
        """
        if not isinstance(event, (ChatCompletion, ChatCompletionChunk)):
            raise MalformedAnswerError(f"the body is not a chat completion ({type(event).__name__})")
        # The SDK builds its models without checking: any field may be missing or anything.
        choices: object = getattr(event, "choices", None)
        whole, seen = isinstance(event, ChatCompletion), self.seen
        if not isinstance(choices, list) or (whole and not choices):
            raise MalformedAnswerError("it has no choices")
        seen.model = getattr(event, "model", None) or seen.model
        seen.usage = getattr(event, "usage", None) or seen.usage
        if not choices:
            # The last chunk, which only counts the tokens.
            return
        part = getattr(choices[0], "message" if whole else "delta", None)
        content = getattr(part, "content", None)
        if content is not None:
            seen.pieces.append(content)
        seen.refused = seen.refused or bool(getattr(part, "refusal", None))
        seen.reason = getattr(choices[0], "finish_reason", None) or seen.reason
        seen.ended = whole or seen.reason is not None


class ResponsesReader:
    """
    Reads answers of the responses API.
    """

    def __init__(self) -> None:
        """
        Begin with nothing.
        """
        self.seen = Seen()

    def take(self, event: object) -> None:
        """
        Take a response, or an event; of a stream's events only the last has the whole answer.
        """
        if isinstance(event, Response):
            self._take_whole(event)
            return
        kind = getattr(event, "type", None)
        if kind == "error":
            raise ReportedError(getattr(event, "code", None))
        if not isinstance(kind, str):
            raise MalformedAnswerError(f"the body is not a response ({type(event).__name__})")
        if kind in {"response.completed", "response.incomplete", "response.failed"}:
            response = getattr(event, "response", None)
            if not isinstance(response, Response):
                raise MalformedAnswerError("its last event has no response")
            self._take_whole(response)

    def _take_whole(self, response: Response) -> None:
        error, status = getattr(response, "error", None), getattr(response, "status", None)
        if error is not None or status == "failed":
            raise ReportedError(getattr(error, "code", None))
        output: object = getattr(response, "output", None)
        if not isinstance(output, list):
            raise MalformedAnswerError("it has no output")
        seen = self.seen
        for part in [part for item in output if getattr(item, "type", None) == "message" for part in _parts(item)]:
            if getattr(part, "type", None) == "output_text":
                seen.pieces.append(getattr(part, "text", None))
            seen.refused = seen.refused or getattr(part, "type", None) == "refusal"
        reason = getattr(getattr(response, "incomplete_details", None), "reason", None)
        seen.reason = {None: "stop", "max_output_tokens": "length"}.get(reason, reason)
        seen.ended = status in {"completed", "incomplete"}
        seen.model, seen.usage = getattr(response, "model", None), getattr(response, "usage", None)


def _parts(item: object) -> list[Any]:
    content = getattr(item, "content", None)
    if not isinstance(content, list):
        raise MalformedAnswerError("its message has no content")
    return content


def _count(usage: object, *names: str) -> int | None:
    """
    Read a token count; ``None`` when there is none, or none that makes sense.
    """
    values = [getattr(usage, name, None) for name in names]
    return next((value for value in values if type(value) is int and value >= 0), None)
