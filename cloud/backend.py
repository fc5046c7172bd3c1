"""Settings of a server of someone else's that answers for the cloud workers. Imports nothing heavy."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from configs.settings import Settings


def _http_url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise ValueError("a URL that begins with http:// or https://, such as http://127.0.0.1:8000/v1")
    if "@" in text.split("/")[2]:
        raise ValueError("no user or password here, which would be shown and saved: use api_key_env")
    return text.rstrip("/")


class OpenAIBackend(Settings):
    """A server of someone else's that answers for the cloud workers, in live runs."""

    kind: Literal["openai"] = "openai"
    base_url: Annotated[str, AfterValidator(_http_url)] = Field(
        max_length=2048, description="of the API, such as http://127.0.0.1:8000/v1"
    )
    model: str = Field(min_length=1, max_length=512, description="the model's name there")
    api_key_env: str | None = Field(
        default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="the environment variable that holds the key"
    )
    api: Literal["chat", "completions"] = Field(default="chat", description="which of the two endpoints is asked")
    at_a_time: int = Field(default=64, ge=1, le=4096, description="requests that a worker passes on at a time")
    timeout_s: float = Field(default=60.0, gt=0, le=3600, description="for the whole answer to one request")
    extra: dict[str, Any] = Field(
        default={}, description="more fields of every request, such as {ignore_eos: true} for vLLM"
    )
