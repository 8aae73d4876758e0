"""transformers' handlers of chat and text completions, on our engine and with what OpenAI's API has besides."""

import asyncio
import copy
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi.responses import JSONResponse, Response, StreamingResponse
from openai.types import Completion, CompletionChoice, CompletionUsage
from openai.types.chat import ChatCompletionChunk
from transformers import GenerationConfig
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.utils import BaseHandler, Modality

from llmint8.generation.answer import Answer
from llmint8.generation.engine import Engine
from llmint8.serving.errors import APIError, cut, stopping
from llmint8.serving.lifecycle import Lifecycle
from llmint8.serving.model_manager import Int8ModelManager
from llmint8.serving.prompts import Prompts, most_characters, refusals
from llmint8.serving.record import Record, current
from llmint8.serving.requests import ChatRequest, Checked, CompletionRequest, GenerationRequest, check
from llmint8.serving.settings import Settings

# Below it the most likely token has all of the probability, and logits would overflow.
_GREEDY = 0.01
_DONE = "data: [DONE]\n\n"


class Stream:
    """The pieces of text of an answer, as they are generated, until it is over or is ended."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[str | None] = asyncio.Queue()
        self.is_cut_off = False

    def send(self, piece: str | None) -> None:
        """Adds a piece, from any thread; None is the last."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

    def cut_off(self) -> None:
        """Ends it, though the answer is not over: the engine may be in the middle of a long step."""
        self.is_cut_off = True
        self._pieces.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[str]:
        """Yields the pieces; several that are there already as one."""
        while True:
            found = [await self._pieces.get()]
            while not self._pieces.empty():
                found.append(self._pieces.get_nowait())
            if text := "".join(piece for piece in found if piece):
                yield text
            if None in found:
                return


class _Handler(BaseHandler):
    """What both kinds of completions share."""

    model_manager: Int8ModelManager
    _continues = False  # the text of the prompt

    def __init__(
        self,
        model_manager: Int8ModelManager,
        generation_state: Any,
        engine: Engine,
        settings: Settings,
        prompts: Prompts,
        lifecycle: Lifecycle,
    ) -> None:
        super().__init__(model_manager, generation_state)
        self.engine, self.settings, self.prompts, self.lifecycle = engine, settings, prompts, lifecycle
        config = model_manager.model.config.get_text_config(decoder=True)
        self.context: int | None = getattr(config, "max_position_embeddings", None)
        self.vocabulary: int = config.vocab_size
        self.most_tokens = settings.max_prompt_tokens
        if self.context is not None:
            self.most_tokens = min(self.most_tokens, self.context - 1)
        per_token = most_characters(model_manager.tokenizer)
        self.most_characters = None if per_token is None else per_token * self.most_tokens

    def _check(self, kind: type[Checked], body: dict[str, Any]) -> Checked:
        """A request whose fields are in order, and that is for our model."""
        request = check(kind, body)
        if request.model is not None:
            self.model_manager.check_name(request.model)
        return request

    def _config(self, request: GenerationRequest, max_tokens: int | None, prompt: int) -> GenerationConfig:
        """How to generate: what the model's own configuration says, and what the request says."""
        if not 0 < prompt <= self.most_tokens:
            message = f"the prompt has {prompt} tokens; it must have 1 to {self.most_tokens}"
            raise APIError(400, message, code="context_length_exceeded" if prompt else "invalid_value")
        if max_tokens is not None and max_tokens > self.settings.max_tokens:
            message = (
                f"max_tokens is {cut(str(max_tokens), 20)}; this server generates {self.settings.max_tokens} at most"
            )
            raise APIError(400, message, param="max_tokens", code="invalid_value")
        config: GenerationConfig = copy.deepcopy(self.model_manager.model.generation_config)
        config.max_length = None
        if config.eos_token_id is None:
            config.eos_token_id = self.model_manager.tokenizer.eos_token_id
        config.max_new_tokens = max_tokens or self.settings.max_tokens
        if self.context is not None:
            config.max_new_tokens = min(config.max_new_tokens, self.context - prompt)
        if request.temperature is not None or request.top_p is not None:
            temperature = 1.0 if request.temperature is None else request.temperature
            config.do_sample = temperature >= _GREEDY and request.top_p != 0
            config.temperature = temperature if config.do_sample else None
            config.top_p = request.top_p if config.do_sample else None
            config.top_k = None
        if request.logit_bias:
            config.sequence_bias = {(self._token(key),): float(bias) for key, bias in request.logit_bias.items()}
        return config

    def _tokens(self, text: str, **options: Any) -> list[int]:
        """The tokens of a prompt. One that must have too many is not tokenized, which would take long."""
        if self.most_characters is not None and len(text) > self.most_characters:
            message = f"the prompt has {len(text)} characters, more than {self.most_tokens} tokens can be"
            raise APIError(400, message, code="context_length_exceeded")
        return list(self.model_manager.tokenizer(text, **options)["input_ids"])

    def _token(self, key: str) -> int:
        number = int(key) if key.isascii() and key.isdigit() and len(key) < 10 else -1
        if not 0 <= number < self.vocabulary:
            raise APIError(400, f"logit_bias: {key[:20]!r} is not a token of the model", param="logit_bias")
        return number

    def _submit(
        self, request: GenerationRequest, max_tokens: int | None, prompt: list[int], record: Record
    ) -> tuple[Answer, Stream]:
        stream = Stream()
        config = self._config(request, max_tokens, len(prompt))
        penalties = (request.frequency_penalty or 0.0, request.presence_penalty or 0.0)
        with refusals(self.engine):
            answer = self.engine.submit(
                prompt,
                config,
                stream.send,
                stop=request.stops,
                seed=request.seed,
                penalties=penalties,
                continues=self._continues,
            )
        record.answer = answer
        if record.gone:
            answer.cancel()
        return answer, stream

    async def _respond(
        self, request: GenerationRequest, max_tokens: int | None, prompt: list[int], request_id: str
    ) -> Response:
        record = current.get() or Record(request_id, "", "", "")
        answer, stream = self._submit(request, max_tokens, prompt, record)
        if request.stream:
            usage = request.stream_options is not None and bool(request.stream_options.include_usage)
            return StreamingResponse(self._events(answer, stream, request_id, usage), media_type="text/event-stream")
        try:
            with self.lifecycle.ends(stream.cut_off):
                text = "".join([piece async for piece in stream])
        finally:
            answer.cancel()  # does nothing to one that is over
        if (fault := _fault(answer, stream)) is not None:
            raise fault
        return JSONResponse(self._completion(request_id, text, answer))

    async def _events(self, answer: Answer, stream: Stream, request_id: str, usage: bool) -> AsyncIterator[str]:
        try:
            for event in self._first(request_id):
                yield event
            with self.lifecycle.ends(stream.cut_off):
                async for piece in stream:
                    yield self._chunk(request_id, piece, None)
            if (fault := _fault(answer, stream)) is not None:
                yield self.chunk_to_sse(json.dumps(fault.body()))
                return
            yield self._chunk(request_id, "", _finish_reason(answer))
            if usage:
                yield self._usage_chunk(request_id, _usage(answer))
            yield _DONE
        finally:
            answer.cancel()

    def _first(self, request_id: str) -> list[str]:
        return []

    def _chunk(self, request_id: str, text: str, finish_reason: str | None) -> str:
        raise NotImplementedError

    def _usage_chunk(self, request_id: str, usage: CompletionUsage) -> str:
        raise NotImplementedError

    def _completion(self, request_id: str, text: str, answer: Answer) -> dict[str, Any]:
        raise NotImplementedError


class ChatHandler(_Handler, ChatCompletionHandler):
    """`/v1/chat/completions`."""

    async def handle_request(self, body: dict[str, Any], request_id: str) -> Response:
        """Answers a request.

        Args:
            body: From JSON.
            request_id: Id of the answer.

        Raises:
            APIError: Something is wrong with the request, or there is no room for it.
        """
        request = self._check(ChatRequest, body)
        prompt = await self.prompts.read(lambda: self._prompt(request))
        return await self._respond(request, request.max_completion_tokens or request.max_tokens, prompt, request_id)

    def _prompt(self, request: ChatRequest) -> list[int]:
        tokenizer = self.model_manager.tokenizer
        if not tokenizer.chat_template:
            raise APIError(400, "the model has no chat template; use /v1/completions", code="no_chat_template")
        messages = [message.model_dump(exclude_none=True) for message in request.messages]
        for message in messages:
            message["role"] = "system" if message["role"] == "developer" else message["role"]
        inputs = self.get_processor_inputs_from_messages(messages, Modality.LLM)
        try:
            text = tokenizer.apply_chat_template(inputs, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # templates raise what they like for messages that they do not take
            raise APIError(
                400, f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error
        return self._tokens(text, add_special_tokens=False)  # the template has them

    def _first(self, request_id: str) -> list[str]:
        return [self._build_chunk_sse(request_id, content="", role="assistant", model=self.model_manager.name)]

    def _chunk(self, request_id: str, text: str, finish_reason: str | None) -> str:
        content = None if finish_reason else text
        return self._build_chunk_sse(
            request_id, content=content, finish_reason=finish_reason, model=self.model_manager.name
        )

    def _usage_chunk(self, request_id: str, usage: CompletionUsage) -> str:
        chunk = ChatCompletionChunk.model_validate_json(
            self._build_chunk_sse(request_id, model=self.model_manager.name, usage=usage).removeprefix("data: ")
        )
        return self.chunk_to_sse(chunk.model_copy(update={"choices": []}))

    def _completion(self, request_id: str, text: str, answer: Answer) -> dict[str, Any]:
        return self._build_completion(request_id, text, self.model_manager.name, _finish_reason(answer), _usage(answer))


class TextHandler(_Handler, CompletionHandler):
    """`/v1/completions`."""

    _continues = True

    async def handle_request(self, body: dict[str, Any], request_id: str) -> Response:
        """Answers a request.

        Args:
            body: From JSON.
            request_id: Id of the answer.

        Raises:
            APIError: Something is wrong with the request, or there is no room for it.
        """
        request = self._check(CompletionRequest, body)
        prompt = await self.prompts.read(lambda: self._tokens(request.text))
        return await self._respond(request, request.max_tokens, prompt, request_id)

    def _chunk(self, request_id: str, text: str, finish_reason: str | None) -> str:
        return self._build_chunk_sse(request_id, self.model_manager.name, text, finish_reason)

    def _usage_chunk(self, request_id: str, usage: CompletionUsage) -> str:
        chunk = Completion.model_construct(
            id=request_id,
            object="text_completion",
            created=int(time.time()),
            model=self.model_manager.name,
            choices=[],
            usage=usage,
        )
        return self.chunk_to_sse(chunk)

    def _completion(self, request_id: str, text: str, answer: Answer) -> dict[str, Any]:
        choice = CompletionChoice.model_construct(text=text, index=0, finish_reason=_finish_reason(answer))
        completion = Completion.model_construct(
            id=request_id,
            object="text_completion",
            created=int(time.time()),
            model=self.model_manager.name,
            choices=[choice],
            usage=_usage(answer),
        )
        return completion.model_dump(exclude_none=True)


def _fault(answer: Answer, stream: Stream) -> APIError | None:
    """Why an answer is not complete; those of clients that have hung up nobody reads."""
    if answer.finish_reason == "error":
        return APIError(500, "the answer could not be generated; the log of the server says why")
    return stopping() if stream.is_cut_off or answer.finish_reason == "cancelled" else None


def _finish_reason(answer: Answer) -> str:
    return "stop" if answer.finish_reason == "stop" else "length"


def _usage(answer: Answer) -> CompletionUsage:
    prompt, completion = len(answer.prompt), len(answer.tokens)
    return CompletionUsage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)
