"""What a client may ask for, checked. Fields that OpenAI has and a text model cannot do are refused, not ignored."""

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from llmint8.serving.errors import APIError, cut

_Stop = Annotated[str, Field(min_length=1, max_length=1000)]
_Penalty = Annotated[float | None, Field(ge=-2, le=2)]
_MOST_STOPS = 4


class StreamOptions(BaseModel):
    """What a stream has besides text."""

    model_config = ConfigDict(strict=True)

    include_usage: bool | None = None


class GenerationRequest(BaseModel):
    """What both kinds of requests have."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    top_p: Annotated[float | None, Field(ge=0, le=1)] = None
    seed: Annotated[int | None, Field(ge=-(2**63), lt=2**63)] = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=_MOST_STOPS)] | None = None
    frequency_penalty: _Penalty = None
    presence_penalty: _Penalty = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    n: Annotated[int | None, Field(ge=1, le=1)] = None

    @model_validator(mode="after")
    def _has_options_of_a_stream_only_if_streamed(self) -> "GenerationRequest":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only with stream set to true")
        return self

    @property
    def stops(self) -> list[str]:
        """The stop sequences."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class TextPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(strict=True)

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A message of a chat."""

    model_config = ConfigDict(strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None

    @model_validator(mode="after")
    def _has_content(self) -> "Message":
        if self.content is None and self.role != "assistant":
            raise ValueError(f"a message of the {self.role} needs content")
        return self


class ResponseFormat(BaseModel):
    """The form of an answer."""

    type: Literal["text"]


class ChatRequest(GenerationRequest):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    logprobs: Literal[False] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Any] | None, Field(max_length=0)] = None
    functions: Annotated[list[Any] | None, Field(max_length=0)] = None


class CompletionRequest(GenerationRequest):
    """The body of `/v1/completions`."""

    prompt: Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(min_length=1, max_length=1)]
    suffix: Literal[""] | None = None
    echo: Literal[False] | None = None
    logprobs: None = None
    best_of: Annotated[int | None, Field(ge=1, le=1)] = None

    @property
    def text(self) -> str:
        """The prompt."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]


Checked = TypeVar("Checked", bound=GenerationRequest)


def check(kind: type[Checked], body: dict[str, Any]) -> Checked:
    """Returns a request whose fields are in order; unknown ones are left out.

    Args:
        kind: The class of the request.
        body: From JSON.

    Raises:
        APIError: 400; a field is missing or wrong.
    """
    try:
        json.dumps(body, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError) as error:
        raise APIError(400, "the body has text that is not Unicode, or is nested too deeply") from error
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        # Where a field takes one of several types, pydantic names the type last; clients know the field.
        names = [cut(str(part), 50) for part in first["loc"] if not (isinstance(part, str) and not part.isidentifier())]
        param = ".".join(names[:3]) or None
        message = first["msg"].removeprefix("Value error, ")
        raise APIError(400, f"{param}: {message}" if param else message, param=param, code="invalid_value") from error
