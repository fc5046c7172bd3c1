"""An OpenAI-compatible inference server (vLLM, SGLang, llama.cpp, `transformers serve`) as a client sees it.

One streamed request at a time is a coroutine; the server batches what comes together. All that it says is bounded in
size and time, and what goes wrong is one line that names the server.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
from aiohttp.http import HttpProcessingError

from cloud.backend import OpenAIBackend
from models.clock import now_s
from models.lengths import MAX_TOKENS

CONNECT_S = 5.0
MAX_LINE_BYTES = 2**18
MAX_ANSWER_BYTES = 2**24  # of the whole stream
MAX_SAID = 200  # characters of a server's own message
PARTS = {"chat": ("/chat/completions", "delta", "content"), "completions": ("/completions", None, "text")}


class ServerError(Exception):
    """The server doesn't answer as it should; the message names it and says what it did, in one line."""


@dataclass(frozen=True, slots=True)
class Generated:
    """A streamed answer.

    Attributes:
        first_token_s, end_s: seconds of the event loop's clock.
        tokens: of the answer: as the server counts them, or else the pieces that came.
        prompt_tokens: as the server counts them; None if it doesn't say.
    """

    text: str
    first_token_s: float
    end_s: float
    tokens: int
    prompt_tokens: int | None


class OpenAIServer:
    """Asks one server. Use as an asynchronous context manager.

    Raises ServerError on entry if the key's environment variable isn't set.
    """

    def __init__(self, backend: OpenAIBackend) -> None:
        self.backend = backend
        self._session: aiohttp.ClientSession | None = None
        self._key = ""

    def check(self) -> None:
        """Raises ServerError: this process's environment has no key where one is needed."""
        if (name := self.backend.api_key_env) is not None:
            self._key = os.environ.get(name, "")
            if not self._key:
                raise ServerError(f"{self.backend.base_url}: the key's environment variable {name} isn't set here")

    async def __aenter__(self) -> Self:
        self.check()
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        timeout = aiohttp.ClientTimeout(total=self.backend.timeout_s, sock_connect=CONNECT_S)
        connector = aiohttp.TCPConnector(limit=0)
        self._session = aiohttp.ClientSession(
            headers=headers, timeout=timeout, connector=connector, read_bufsize=MAX_LINE_BYTES
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def generate(self, prompt: str, max_tokens: int, begun: Callable[[], object] = lambda: None) -> Generated:
        """Ask for an answer of at most `max_tokens`; `begun` is called at its first token. Raises ServerError."""
        assert self._session is not None
        where = f"{self.backend.base_url}{PARTS[self.backend.api][0]}"
        try:
            async with self._session.post(where, json=self._request(prompt, max_tokens), allow_redirects=False) as got:
                if got.status != 200:
                    said = (await got.content.read(MAX_LINE_BYTES)).decode("utf-8", "replace")
                    raise ServerError(f"{where}: HTTP {got.status}: {self._line(said)}")
                if got.content_type != "text/event-stream":
                    raise ServerError(f"{where}: answers in {got.content_type}, not as a stream of events")
                return await self._read(where, got.content, begun)
        except TimeoutError:
            raise ServerError(f"{where}: no whole answer within {self.backend.timeout_s:g} s") from None
        except (aiohttp.ClientError, HttpProcessingError, ValueError, OSError) as error:
            raise ServerError(f"{where}: {self._line(str(error) or type(error).__name__)}") from None

    def _request(self, prompt: str, max_tokens: int) -> dict[str, Any]:
        asked: dict[str, Any] = {"model": self.backend.model, "stream": True, "stream_options": {"include_usage": True}}
        asked |= {"max_tokens": max_tokens, "temperature": 0.0}
        chat = self.backend.api == "chat"
        asked |= {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
        return asked | self.backend.extra

    async def _read(self, where: str, stream: aiohttp.StreamReader, begun: Callable[[], object]) -> Generated:
        """Read a stream of events to its end. Raises ServerError."""
        pieces: list[str] = []
        first_token_s = end_s = 0.0
        usage: dict[str, Any] = {}
        ended = False
        async for event in self._events(where, stream):
            if isinstance(event.get("usage"), dict):
                usage = event["usage"]
            if "error" in event:
                raise ServerError(f"{where}: {self._line(json.dumps(event['error']))}")
            text, finished = self._piece(where, event)
            ended = ended or finished
            if text:
                end_s = now_s()
                if not pieces:
                    first_token_s = end_s
                    begun()
                pieces.append(text)
        if not pieces:
            raise ServerError(f"{where}: the answer has no text")
        if not ended:
            raise ServerError(f"{where}: the stream ended before the answer did")
        tokens, prompt_tokens = _count(usage.get("completion_tokens")), _count(usage.get("prompt_tokens"))
        return Generated(
            "".join(pieces),
            first_token_s,
            end_s,
            tokens or len(pieces),
            prompt_tokens,
        )

    def _piece(self, where: str, event: dict[str, Any]) -> tuple[str, bool]:
        """An event's text, and whether it is the answer's last one. Raises ServerError."""
        _, part, key = PARTS[self.backend.api]
        choices = event.get("choices")
        if not choices:
            return "", False
        try:
            choice = choices[0]
            text = (choice[part] if part else choice).get(key) or ""
            if not isinstance(text, str):
                raise TypeError
            return text, choice.get("finish_reason") is not None
        except (TypeError, KeyError, IndexError, AttributeError):
            raise ServerError(f"{where}: not a piece of an answer: {self._line(json.dumps(event))}") from None

    async def _events(self, where: str, stream: aiohttp.StreamReader) -> AsyncIterator[dict[str, Any]]:
        """The JSON objects of a stream of server-sent events, up to `[DONE]` or its end. Raises ServerError."""
        read = 0
        while line := await stream.readline():
            read += len(line)
            if read > MAX_ANSWER_BYTES:
                raise ServerError(f"{where}: an answer of more than {MAX_ANSWER_BYTES:,} bytes")
            if not line.startswith(b"data:"):
                continue  # comments, names of events, empty lines
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            try:
                event = json.loads(data)
            except (ValueError, RecursionError):
                raise ServerError(f"{where}: not JSON: {self._line(data.decode('utf-8', 'replace'))}") from None
            if not isinstance(event, dict):
                raise ServerError(f"{where}: not a JSON object: {self._line(data.decode('utf-8', 'replace'))}")
            yield event

    def _line(self, text: str) -> str:
        """What the server said, without the key, as a short line."""
        text = text.replace(self._key, "***") if self._key else text
        printable = "".join(each if each.isprintable() else " " for each in text[: 4 * MAX_SAID])
        return " ".join(printable.split())[:MAX_SAID]


async def try_out(backend: OpenAIBackend) -> None:
    """Ask the server for one token, so that a run begins only with one that answers. Raises ServerError."""
    async with OpenAIServer(backend) as server:
        await server.generate("Hello", 1)


def try_out_now(backend: OpenAIBackend) -> None:
    """As `try_out`, outside of an event loop."""
    asyncio.run(try_out(backend))


def _count(tokens: Any) -> int | None:
    """A number of tokens as a server says it; None for what can't be one."""
    return tokens if type(tokens) is int and 0 < tokens <= MAX_TOKENS else None
