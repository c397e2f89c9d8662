"""
What a healthy provider answers: chat completions and responses, whole or as an event stream.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from demo import article

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Question", "body", "events", "models"]

MODELS = ("gpt-5.4-mini", "deepseek-chat", "demo")


@dataclass(frozen=True, slots=True)
class Question:
    """
    What a caller asked for, by either endpoint.

    Attributes:
        api: ``"chat"`` or ``"responses"``.

        prompt: The user's words.

        instructions: The system's; another text asks for another article.

        model: As the caller named it.

        stream: Whether the answer is to be an event stream.
    """

    api: str
    prompt: str
    instructions: str
    model: str
    stream: bool

    @classmethod
    def read(cls, api: str, sent: bytes) -> Question:
        """
        Read a request's body.

        Raises:
            ValueError: It asks for nothing sensible.
        """
        try:
            wanted = json.loads(sent)
            if api == "chat":
                said = {m["role"]: str(m["content"]) for m in wanted["messages"]}
                prompt, instructions = said["user"], said.get("system", "")
            else:
                prompt, instructions = str(wanted["input"]), str(wanted.get("instructions", ""))
            return cls(api, prompt, instructions, str(wanted["model"]), bool(wanted.get("stream")))
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError("The body needs a model, and a message from the user or an input.") from error


def body(question: Question, number: int, *, finish: str = "stop") -> dict[str, Any]:
    """
    Answer *question* whole.

    Args:
        question: What was asked.

        number: Of the call; part of the answer's id.

        finish: ``"stop"`` or ``"content_filter"``.
    """
    text = article.write(question.prompt, question.instructions)
    words = len(question.prompt.split()), len(text.split())
    if question.api == "chat":
        message = {"role": "assistant", "content": text, "refusal": None}
        return {
            "id": f"chatcmpl-demo-{number}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": question.model,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}],
            "usage": _usage("prompt_tokens", "completion_tokens", words),
        }
    done = finish == "stop"
    return {
        "id": f"resp-demo-{number}",
        "object": "response",
        "created_at": int(time.time()),
        "model": question.model,
        "status": "completed" if done else "incomplete",
        "error": None,
        "incomplete_details": None if done else {"reason": finish},
        "output": [
            {
                "id": f"msg-demo-{number}",
                "type": "message",
                "role": "assistant",
                "status": "completed" if done else "incomplete",
                "content": [{"type": "output_text", "text": text, "annotations": []}],
            }
        ],
        "usage": _usage("input_tokens", "output_tokens", words),
    }


def events(question: Question, number: int, *, finish: str = "stop") -> Iterator[str]:
    """
    Answer *question* as the events of a stream; the arguments are those of :func:`body`.
    """
    whole = body(question, number, finish=finish)
    text = article.write(question.prompt, question.instructions)
    pieces = [text[start : start + 80] for start in range(0, len(text), 80)]
    if question.api == "chat":
        frame = {key: whole[key] for key in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
        for piece in pieces:
            yield _event(frame | {"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
        yield _event(frame | {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
        yield _event(frame | {"choices": [], "usage": whole["usage"]})
        yield "data: [DONE]\n\n"
        return
    for count, piece in enumerate(pieces):
        delta = {"type": "response.output_text.delta", "delta": piece, "sequence_number": count}
        yield _event(delta | {"item_id": f"msg-demo-{number}", "output_index": 0, "content_index": 0, "logprobs": []})
    kind = "response.completed" if finish == "stop" else "response.incomplete"
    yield _event({"type": kind, "response": whole, "sequence_number": len(pieces)})


def models() -> dict[str, Any]:
    """
    List the models, as a health check asks for them.
    """
    listed = [{"id": name, "object": "model", "created": 0, "owned_by": "demo"} for name in MODELS]
    return {"object": "list", "data": listed}


def _usage(asked: str, answered: str, words: tuple[int, int]) -> dict[str, int]:
    return {asked: words[0], answered: words[1], "total_tokens": sum(words)}


def _event(data: dict[str, Any]) -> str:
    kind = f"event: {data['type']}\n" if "type" in data else ""
    return f"{kind}data: {json.dumps(data)}\n\n"
