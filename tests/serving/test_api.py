"""What the official client gets."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from llmint8.serving import Int8ModelManager

KEY = "a secret"
MODEL = "SmolLM2-135M-Instruct"
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
STORY = [{"role": "user", "content": "Tell me a story about a dog."}]


@pytest.fixture
def client(server: Any) -> openai.OpenAI:
    return server.client


def ask(client: openai.OpenAI, messages: Any = CAPITAL, **options: Any) -> Any:
    return client.chat.completions.create(model=MODEL, messages=messages, **options)


def test_a_chat_is_streamed_with_usage_at_its_end(client: openai.OpenAI) -> None:
    chunks = list(ask(client, stream=True, temperature=0, stream_options={"include_usage": True}))
    *parts, usage = chunks
    assert len(parts) > 5
    assert parts[0].choices[0].delta.role == "assistant"
    text = "".join(part.choices[0].delta.content or "" for part in parts)
    assert "Paris" in text
    assert [part.choices[0].finish_reason for part in parts] == [None] * (len(parts) - 1) + ["stop"]
    assert all(part.usage is None for part in parts)
    assert usage.choices == []
    whole = ask(client, temperature=0)
    assert whole.choices[0].message.content == text
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage == usage.usage


def test_usage_counts_tokens(client: openai.OpenAI, manager: Int8ModelManager) -> None:
    answer = ask(client, temperature=0)
    prompt = manager.tokenizer.apply_chat_template(CAPITAL, add_generation_prompt=True, return_dict=True)["input_ids"]
    said = manager.tokenizer(answer.choices[0].message.content)["input_ids"]
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == len(said) + 1  # and the token that ends it
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_without_options_has_no_usage_and_ends_with_done(server: Any) -> None:
    body = {"model": MODEL, "messages": CAPITAL, "stream": True, "max_tokens": 2}
    headers = {"Authorization": f"Bearer {KEY}"}
    response = httpx.post(f"{server.url}/chat/completions", json=body, headers=headers, timeout=60)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("data: [DONE]\n\n")
    assert "usage" not in response.text


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_max_tokens(client: openai.OpenAI, field: str) -> None:
    answer = ask(client, STORY, **{field: 7})
    assert answer.usage.completion_tokens == 7
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize("stop", ["Paris", ["nothing of it", "of France"]])
@pytest.mark.parametrize("stream", [False, True])
def test_stop_is_not_part_of_the_answer(client: openai.OpenAI, stop: Any, stream: bool) -> None:
    whole = ask(client, temperature=0).choices[0].message.content
    answer = ask(client, temperature=0, stop=stop, stream=stream)
    if stream:
        chunks = [chunk.choices[0] for chunk in answer]
        text, reason = "".join(chunk.delta.content or "" for chunk in chunks), chunks[-1].finish_reason
    else:
        text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
    assert text == whole.split(stop if isinstance(stop, str) else stop[1])[0]
    assert text != whole
    assert reason == "stop"


def test_a_seed_gives_the_same_answer_in_any_company(client: openai.OpenAI) -> None:
    def sampled(seed: int) -> str:
        return ask(client, STORY, seed=seed, temperature=1.0, top_p=0.9, max_tokens=24).choices[0].message.content

    alone = sampled(1)
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(sampled, [1, 2, 3, 1, 4, 5, 1, 6, 7, 8, 9, 1]))
    assert [together[i] for i in (0, 3, 6, 11)] == [alone] * 4
    assert len(set(together)) == 9


def test_temperature_is_of_each_request(client: openai.OpenAI) -> None:
    def say(temperature: float) -> str:
        return ask(client, STORY, temperature=temperature, max_tokens=16).choices[0].message.content

    greedy = say(0)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(say, [0, 1.5, 0, 1.5, 0, 1.5]))
    assert answers[::2] == [greedy] * 3
    assert len({greedy, *answers[1::2]}) == 4
    assert ask(client, STORY, temperature=2, top_p=0, max_tokens=16).choices[0].message.content == greedy


def test_logit_bias(client: openai.OpenAI, manager: Int8ModelManager) -> None:
    paris, lyon = (manager.tokenizer(f" {city}")["input_ids"][0] for city in ("Paris", "Lyon"))
    options = {"temperature": 0, "max_tokens": 3}
    assert " Paris" not in ask(client, logit_bias={str(paris): -100}, **options).choices[0].message.content
    said = ask(client, logit_bias={str(lyon): 100}, **options).choices[0].message.content
    assert said == manager.tokenizer.decode([lyon] * 3)


def test_text_completions(client: openai.OpenAI) -> None:
    prompt = {"model": MODEL, "prompt": "The capital of France is", "temperature": 0, "max_tokens": 3}
    answer = client.completions.create(**prompt)
    assert "Paris" in answer.choices[0].text
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 3
    *chunks, usage = client.completions.create(**prompt, stream=True, stream_options={"include_usage": True})
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text
    assert usage.usage == answer.usage


def test_parts_of_messages_and_the_path_as_the_name(client: openai.OpenAI, smollm2: Path) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": CAPITAL[0]["content"]}]}]
    answer = client.chat.completions.create(model=str(smollm2), messages=parts, temperature=0, max_tokens=20)
    assert answer.choices[0].message.content == ask(client, temperature=0).choices[0].message.content


def test_models_health_info_and_metrics(client: openai.OpenAI, server: Any, smollm2: Path) -> None:
    assert [model.id for model in client.models.list().data] == [MODEL]
    assert client.models.retrieve(MODEL) == client.models.list().data[0]
    assert client.models.retrieve(str(smollm2)).id == MODEL
    root = server.url.removesuffix("/v1")
    assert httpx.head(f"{root}/health").status_code == 200
    assert httpx.get(f"{root}/health").json() == {"status": "ok"}  # without a key
    ask(client, max_tokens=2)
    headers = {"Authorization": f"Bearer {KEY}"}
    metrics = httpx.get(f"{root}/metrics", headers=headers).text
    assert 'llmint8_requests_total{path="/v1/chat/completions",status="200"}' in metrics
    info = httpx.get(f"{root}/info", headers=headers).json()
    assert info["weights_bytes"] < 0.65 * info["unquantized_weights_bytes"]


def test_the_log_has_a_line_for_each_request_and_nothing_that_was_said(
    client: openai.OpenAI, capfd: pytest.CaptureFixture[str]
) -> None:
    ask(client, temperature=0, max_tokens=20)
    text, end = "", time.monotonic() + 10
    while not text.endswith("}\n") and time.monotonic() < end:  # it is written once the answer has been sent
        text += capfd.readouterr().err
        time.sleep(0.01)
    line = json.loads(text.splitlines()[-1])
    assert line["path"] == "/v1/chat/completions"
    assert (line["status"], line["prompt_tokens"], line["finish_reason"]) == (200, 37, "stop")
    assert 0 < line["first_token_seconds"] <= line["seconds"]
    assert "capital" not in str(line)
    assert KEY not in str(line)
