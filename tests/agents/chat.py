"""A chat model on loopback for agents: it calls the tool that the test names, then says that it is done."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ScriptedChat(ThreadingHTTPServer):
    """Speaks OpenAI's chat completions, as a stream. call is the tool and its arguments; seen are tools' results."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answering)
        self.call: tuple[str, dict[str, Any]] = ("", {})
        self.seen: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def next_message(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        """The tool's call, or where its result is there the end of the turn."""
        asked = max(place for place, message in enumerate(messages) if _is_question(message))
        results = [message for message in messages[asked:] if message["role"] == "tool"]
        if results:
            self.seen = [_text(message["content"]) for message in results]
            return {"role": "assistant", "content": "Done."}
        name, arguments = self.call
        function = {"name": name, "arguments": json.dumps(arguments)}
        call = {"index": 0, "id": f"call_{len(messages)}", "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}


class _Answering(BaseHTTPRequestHandler):
    server: ScriptedChat

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        message = self.server.next_message(body["messages"])
        reason = "tool_calls" if "tool_calls" in message else "stop"
        head = {"id": "answer", "object": "chat.completion.chunk", "created": 1, "model": "scripted"}
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for choices in (
            [{"index": 0, "delta": message, "finish_reason": None}],
            [{"index": 0, "delta": {}, "finish_reason": reason}],
        ):
            self._say(json.dumps({**head, "choices": choices}))
        self._say(json.dumps({**head, "choices": [], "usage": usage}))
        self._say("[DONE]")

    def log_message(self, format: str, *values: Any) -> None:
        """Nothing is printed."""

    def _say(self, data: str) -> None:
        self.wfile.write(f"data: {data}\n\n".encode())


@contextmanager
def chatting() -> Iterator[ScriptedChat]:
    chat = ScriptedChat()
    threading.Thread(target=chat.serve_forever, daemon=True).start()
    try:
        yield chat
    finally:
        chat.shutdown()
        chat.server_close()


def _is_question(message: dict[str, Any]) -> bool:
    """Whether a person asks: the host adds messages of its own, which are marked."""
    return message["role"] == "user" and "OPENCLAW_INTERNAL_CONTEXT" not in _text(message["content"])


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content or [])
