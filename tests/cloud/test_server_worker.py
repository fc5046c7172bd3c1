"""A worker that passes requests on to an inference server: a real one, and one that does everything wrong."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
from aiohttp import web
from pydantic import ValidationError

from cloud import openai
from cloud.backend import OpenAIBackend
from cloud.frames import CloudStages, Header, Kind, small_frame
from cloud.openai import OpenAIServer, ServerError, try_out
from cloud.passing_on import WORDS, ServerWorker
from cloud.runtime import ProfileCloud
from tests.support import workers
from tests.support.workers import HEDGED_PROFILE, Client

PROMPT = 1  # the number of this mode
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def backend(port: int, **changes: object) -> OpenAIBackend:
    return OpenAIBackend.model_validate({"base_url": f"http://127.0.0.1:{port}/v1", "model": "m"} | changes)


@asynccontextmanager
async def server(handler: Handler) -> AsyncIterator[int]:
    """The port of a server that answers all requests by `handler`."""
    app = web.Application()
    app.router.add_post("/v1/{tail:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def stream(request: web.Request, *lines: str, pause_s: float = 0.0) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for line in lines:
        await response.write(f"data: {line}\n\n".encode())
        await asyncio.sleep(pause_s)
    return response


def piece(text: str, finish: str | None = None) -> str:
    return json.dumps({"choices": [{"delta": {"content": text}, "finish_reason": finish}]})


async def good(request: web.Request) -> web.StreamResponse:
    asked = await request.json()
    assert asked["stream"] and request.headers.get("Authorization") in (None, "Bearer secret")
    words = asked["messages"][0]["content"].split()
    usage = json.dumps(
        {"choices": [], "usage": {"completion_tokens": asked["max_tokens"], "prompt_tokens": len(words)}}
    )
    return await stream(request, piece("a"), piece("b", "length"), usage, "[DONE]", pause_s=0.05)


async def endless(request: web.Request) -> web.StreamResponse:
    response = await stream(request)
    while True:
        await response.write(f"data: {piece('x' * 10_000)}\n\n".encode())


async def silent(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(2)
    return web.Response()


async def long_line(request: web.Request) -> web.StreamResponse:
    return await stream(request, "y" * 10**6)


async def cut(request: web.Request) -> web.StreamResponse:
    response = await stream(request, piece("a"))
    assert request.transport is not None
    request.transport.abort()
    return response


def says(status: int) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text="no \x1b[31m room\n today" * 1000)

    return handler


def streams(*lines: str) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        return await stream(request, *lines)

    return handler


async def at_once(request: web.Request) -> web.StreamResponse:
    return web.json_response({"choices": [{"message": {"content": "a"}}]})


WRONG: dict[str, tuple[Handler, str]] = {
    "429": (says(429), "HTTP 429: no"),
    "500": (says(500), "HTTP 500: no"),
    "bad JSON": (streams("{"), r"not JSON: \{"),
    "no object": (streams("[1]"), r"not a JSON object: \[1\]"),
    "other JSON": (streams('{"choices": [7]}'), "not a piece of an answer"),
    "an error in the stream": (streams('{"error": {"message": "out of memory"}}'), "out of memory"),
    "deep JSON": (streams("[" * 50_000), "not JSON"),
    "no text": (streams("[DONE]"), "the answer has no text"),
    "half an answer": (streams(piece("a")), "the stream ended before the answer did"),
    "cut": (cut, "the stream ended before the answer did|payload is not completed|Response payload"),
    "at once": (at_once, "answers in application/json, not as a stream"),
    "endless": (endless, "an answer of more than 100,000 bytes"),
    "a long line": (long_line, "Chunk too big|Got more than|too"),
    "silent": (silent, "no whole answer within 0.5 s"),
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_what_a_server_does_wrong_is_one_line_that_names_it(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "MAX_ANSWER_BYTES", 100_000)
    handler, said = WRONG[wrong]
    timeout_s = 0.5 if wrong == "silent" else 20
    async with server(handler) as port, OpenAIServer(backend(port, timeout_s=timeout_s)) as asked:
        with pytest.raises(ServerError, match=said) as raised:
            await asked.generate("a question", 5)
    text = str(raised.value)
    assert text.startswith(f"http://127.0.0.1:{port}/v1/chat/completions: ") and text.isprintable() and len(text) < 400


async def test_a_server_that_is_down_or_a_key_that_is_missing_is_named() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(ServerError, match="Cannot connect to host"):
            await try_out(backend(unused.getsockname()[1]))
    with pytest.raises(ServerError, match="environment variable NO_SUCH_KEY isn't set"):
        await try_out(backend(1, api_key_env="NO_SUCH_KEY"))


async def test_each_request_is_answered_or_refused_with_the_servers_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER_KEY", "secret")
    asked = 0

    async def every_third_fails(request: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        return await (says(503) if asked % 3 == 0 else good)(request)

    async with server(every_third_fails) as port:
        passed_on = OpenAIServer(backend(port, api_key_env="SERVER_KEY", at_a_time=1))
        worker = ServerWorker(ProfileCloud([HEDGED_PROFILE]), 8, passed_on)
        async with workers.serving(worker, 1000) as (_, address):
            client = await Client.open(address)
            ended: dict[Kind, list[CloudStages]] = {Kind.ANSWER: [], Kind.REFUSAL: []}
            for number in range(6):
                await client.send(small_frame(Header(Kind.REQUEST, number, 50, mode=PROMPT), bytes(50)))
                assert (await client.frame())[0].kind is Kind.RECEIPT
                header, body = await client.frame()
                if header.kind is Kind.FIRST_TOKEN:
                    header, body = await client.frame()
                if header.kind is Kind.ANSWER:
                    ended[header.kind].append(CloudStages.unpack(body))
                else:
                    ended[header.kind].append(CloudStages(0.0, text=body.decode()))
            assert worker.counts == {"served": 4, "refused_unservable": 2}
            await worker.settle()
    assert all(stages.decode_ms >= 40 and stages.queue_ms < stages.decode_ms for stages in ended[Kind.ANSWER])
    assert all("HTTP 503: no" in stages.text for stages in ended[Kind.REFUSAL])


async def test_a_key_that_the_server_repeats_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER_KEY", "sk-secret-123")

    async def repeats(request: web.Request) -> web.StreamResponse:
        return web.Response(status=401, text="x" * 190 + request.headers["Authorization"])

    async with server(repeats) as port, OpenAIServer(backend(port, api_key_env="SERVER_KEY")) as asked:
        with pytest.raises(ServerError, match="HTTP 401") as raised:
            await asked.generate("a question", 5)
    assert "sk-" not in str(raised.value)
    with pytest.raises(ValidationError, match="no user or password here"):
        backend(1, base_url="http://me:secret@127.0.0.1/v1")


async def test_what_comes_at_once_comes_in_order_and_counts_are_believed_in_reason() -> None:
    async def at_once(request: web.Request) -> web.StreamResponse:
        usage = json.dumps({"choices": [], "usage": {"completion_tokens": 5 * 10**9}})
        body = "".join(f"data: {line}\n\n" for line in (piece("a"), piece("b", "stop"), usage, "[DONE]"))
        return web.Response(text=body, content_type="text/event-stream")

    async with server(at_once) as port:
        worker = ServerWorker(ProfileCloud([HEDGED_PROFILE]), 8, OpenAIServer(backend(port)))
        async with workers.serving(worker, 1000) as (_, address):
            client = await Client.open(address)
            await client.send(small_frame(Header(Kind.REQUEST, 1, 50, mode=PROMPT), bytes(50)))
            frames = [await client.frame() for _ in range(3)]
    assert [header.kind for header, _ in frames] == [Kind.RECEIPT, Kind.FIRST_TOKEN, Kind.ANSWER]
    assert CloudStages.unpack(frames[2][1]).tokens == 2, "the pieces"


def test_a_worker_without_the_key_says_so_before_it_serves() -> None:
    settings = backend(1, api_key_env="NO_SUCH_KEY")
    with pytest.raises(ServerError, match="NO_SUCH_KEY isn't set here"):
        ServerWorker(ProfileCloud([HEDGED_PROFILE]), 8, OpenAIServer(settings)).check()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random model whose tokens are the words that workers send."""
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    vocabulary = {word: number for number, word in enumerate(["<end>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>").save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=None,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.timeout(180)
async def test_transformers_serve_answers_requests_of_any_length(model: Path, tmp_path: Path) -> None:
    if find_spec("openai") is None or find_spec("uvicorn") is None:
        pytest.skip("needs transformers[serving]")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model), "--device", "cpu"]
    log = (tmp_path / "log").open("w")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    serving = subprocess.Popen(  # noqa: ASYNC220 (nothing else runs yet)
        [*command, "--host", "127.0.0.1", "--port", str(port)], stdout=log, stderr=log, env=environment
    )
    try:
        settings = backend(port, model=str(model), api="completions", extra={"logit_bias": {"0": -100}})
        while True:
            try:
                await try_out(settings)
                break
            except ServerError as error:
                assert serving.poll() is None, (tmp_path / "log").read_text()
                assert "Cannot connect" in str(error), error
                await asyncio.sleep(0.2)
        async with OpenAIServer(settings) as asked:
            found = await asked.generate(" ".join(WORDS[:20]), 7)
            assert 1 <= found.tokens <= 7 and found.first_token_s <= found.end_s
        worker = ServerWorker(ProfileCloud([HEDGED_PROFILE]), 8, OpenAIServer(settings))
        async with workers.serving(worker, 1000) as (_, address):
            client = await Client.open(address)
            await client.send(small_frame(Header(Kind.REQUEST, 1, 50, mode=PROMPT), bytes(50)))
            kinds = [(await client.frame())[0].kind for _ in range(3)]
            assert kinds == [Kind.RECEIPT, Kind.FIRST_TOKEN, Kind.ANSWER]
    finally:
        serving.terminate()
        serving.wait(20)
        log.close()
