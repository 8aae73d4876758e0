"""Answers of the engine, without HTTP."""

import copy
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers

from llmint8.generation.answer import Answer
from llmint8.generation.engine import Engine
from llmint8.generation.sampling import Sampler
from llmint8.kernels import backend

PROMPTS = ("The capital of France is", "Once", "One two three four", "A cat and a dog went to the", "Yes", "def f(x):")


@pytest.fixture
def engine(int8_model: Any, tokenizer: Any) -> Iterator[Engine]:
    engine = Engine(int8_model, tokenizer, slots=12, max_queue=20)
    yield engine
    engine.close()


def submit(engine: Engine, prompt: str, tokens: int = 12, **options: Any) -> tuple[Answer, "queue.Queue[str | None]"]:
    config = copy.deepcopy(engine.model.generation_config)
    config.max_new_tokens, config.do_sample, config.temperature = tokens, "seed" in options, 1.0
    pieces: queue.Queue[str | None] = queue.Queue()
    return engine.submit(engine.tokenizer(prompt)["input_ids"], config, pieces.put, **options), pieces


def wait(answer: Answer, pieces: "queue.Queue[str | None]") -> Answer:
    while pieces.get(timeout=60) is not None:
        pass
    return answer


@pytest.mark.parametrize("piece", [None, 3])
@pytest.mark.parametrize("options", [{}, {"seed": 3}])
def test_an_answer_is_the_same_in_any_company(engine: Engine, options: dict[str, Any], piece: int | None) -> None:
    """More answers than rows in a step, of different lengths, that come and go."""
    engine.piece = piece or engine.piece
    alone = [wait(*submit(engine, prompt, 6 + 5 * i, **options)).tokens for i, prompt in enumerate(PROMPTS)]
    together = [submit(engine, prompt, 6 + 5 * i, **options) for _ in range(3) for i, prompt in enumerate(PROMPTS)]
    assert [wait(*pair).tokens for pair in together] == alone * 3
    assert engine.running == engine.waiting == 0


def test_the_answer_is_that_of_generate(engine: Engine) -> None:
    inputs = engine.tokenizer(PROMPTS[0], return_tensors="pt")
    expected = engine.model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert wait(*submit(engine, PROMPTS[0])).tokens == expected.tolist()


def test_others_go_on_while_a_long_prompt_is_read(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt of 40 pieces: an answer of 20 tokens that has begun before it has ended when it is read."""
    read, events = engine._read, []

    def noted(answers: list[Answer]) -> None:
        events.append((answers[0], short.finish_reason))
        read(answers)

    engine.piece = 5
    short, pieces = submit(engine, PROMPTS[0], 20)
    pieces.get(timeout=60)
    monkeypatch.setattr(engine, "_read", noted)
    long = wait(*submit(engine, " a" * 200, 2))
    wait(short, pieces)
    reads = [reason for answer, reason in events if answer is long]
    assert len(reads) == 40
    assert reads[0] is None
    assert reads[-1] is not None
    assert long.finish_reason == "length"


def test_a_short_prompt_does_not_wait_for_a_long_one(engine: Engine) -> None:
    engine.piece = 5
    long, long_pieces = submit(engine, " a" * 400, 2)
    while not long.read:
        time.sleep(0.001)
    short = wait(*submit(engine, PROMPTS[1], 2))
    assert not long.is_read
    assert short.finish_reason == "length"
    wait(long, long_pieces)


def test_a_prompt_is_read_no_further_once_it_is_cancelled(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    read, engine.piece = engine._read, 5

    def cancelling(answers: list[Answer]) -> None:
        read(answers)
        answers[0].cancel()

    monkeypatch.setattr(engine, "_read", cancelling)
    answer = wait(*submit(engine, " a" * 200, 2))
    assert (answer.read, answer.finish_reason, answer.tokens) == (5, "cancelled", [])
    assert engine.running == 0


def test_an_error_ends_one_answer_and_not_the_engine(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> int:
        raise RuntimeError("broken")

    monkeypatch.setattr(Sampler, "choose", fail)  # the largest is chosen without it
    good, bad = submit(engine, PROMPTS[0], 60), submit(engine, PROMPTS[1], 60, seed=1)
    assert wait(*bad).finish_reason == "error"
    assert wait(*good).finish_reason in ("length", "stop")
    assert engine.is_alive()


def test_a_step_that_fails_costs_the_answer_that_it_fails_for(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [wait(*submit(engine, prompt, 8)).tokens for prompt in PROMPTS[:3]]
    forward, sizes = engine._logits, []

    def logits(answers: list[Answer]) -> torch.Tensor:
        found = forward(answers)  # caches have changed when it fails
        sizes.append(len(answers))
        if len(answers) > 2 or (len(answers) == 1 and answers[0].max_tokens == 9):
            raise torch.OutOfMemoryError("no memory")
        return found

    monkeypatch.setattr(engine, "_logits", logits)
    pairs = [submit(engine, prompt, tokens) for prompt, tokens in zip(PROMPTS, (8, 8, 8, 9), strict=False)]
    *good, bad = [wait(*pair) for pair in pairs]
    assert 4 in sizes
    assert [answer.tokens for answer in good] == alone
    assert bad.finish_reason == "error"


def test_what_chooses_tokens_is_made_where_they_are_chosen(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    made, init = [], Sampler.__init__

    def noted(*args: Any, **kwargs: Any) -> None:
        made.append(threading.current_thread().name)
        init(*args, **kwargs)

    monkeypatch.setattr(Sampler, "__init__", noted)
    wait(*submit(engine, PROMPTS[0], 2))
    assert made == ["generation"]


def test_closing_cancels(engine: Engine) -> None:
    pairs = [submit(engine, prompt, 1000) for prompt in PROMPTS]
    engine.close()
    assert {wait(*pair).finish_reason for pair in pairs} <= {"cancelled", "stop"}
    assert not engine.is_alive()


@pytest.mark.parametrize("kind", ["eager", "mamba", "falcon", "roberta"])
def test_a_model_that_cannot_be_batched_answers_one_after_another(
    tokenizer: Any, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    vocabulary = len(tokenizer)
    if kind == "mamba":
        config: Any = transformers.MambaConfig(vocab_size=vocabulary, hidden_size=32, num_hidden_layers=1)
        model: Any = transformers.MambaForCausalLM(config).eval()
    elif kind == "falcon":
        config = transformers.FalconConfig(
            vocab_size=vocabulary, hidden_size=32, num_hidden_layers=1, num_attention_heads=2
        )
        model = transformers.FalconForCausalLM(config).eval()
    elif kind == "roberta":
        config = transformers.RobertaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            is_decoder=True,
        )
        model = transformers.RobertaForCausalLM(config).eval()
        model.roberta.embeddings.position_embeddings.weight.data *= 50  # or they would not matter
    else:
        config = transformers.LlamaConfig(
            vocab_size=vocabulary, hidden_size=32, intermediate_size=32, num_hidden_layers=1
        )
        model = transformers.LlamaForCausalLM._from_config(config, attn_implementation="eager").eval()
    engine = Engine(model, tokenizer, slots=4)
    assert engine.slots == 1
    (line,) = [record.getMessage() for record in caplog.records if record.name == "llmint8.generation.engine"]
    assert line.startswith("llmint8: answers are generated one after another, since ")
    assert type(model).__name__ in line
    pairs = [submit(engine, prompt, 4) for prompt in PROMPTS[:3]]
    found = [wait(*pair).tokens for pair in pairs]
    for prompt, tokens in zip(PROMPTS, found, strict=False):
        read = [*tokenizer(prompt)["input_ids"], *tokens]
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([read]), use_cache=False).logits[0]
        assert tokens == logits.argmax(-1).tolist()[-5:-1]
    engine.close()


def test_a_step_has_as_many_rows_as_the_backend_decodes(
    int8_model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more, int8 layers would quantize them, and a sequence would have other bits in company."""
    monkeypatch.setattr(backend, "decode_rows", lambda device: 2)
    rows: list[int] = []
    engine = Engine(int8_model, tokenizer, slots=5)
    assert Engine(int8_model, tokenizer).slots == 2
    step = engine._step
    monkeypatch.setattr(engine, "_step", lambda answers: (rows.append(len(answers)), step(answers)))
    answers = [submit(engine, prompt) for prompt in PROMPTS]
    for pair in answers:
        wait(*pair)
    engine.close()
    assert max(rows) == 2


@pytest.mark.parametrize(("architecture", "rows"), [(75, 16), (80, 32), (90, 256)])
def test_gpus_decode_as_many_rows_as_their_tiles_say(
    architecture: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    from llmint8.kernels import triton
    from llmint8.kernels.triton import tiles

    monkeypatch.setattr(triton, "runs_on", lambda index: True)
    monkeypatch.setattr(tiles, "_architecture", lambda index: architecture)
    monkeypatch.setattr(tiles, "_tables", lambda architecture, index: tiles.built_in(architecture))
    assert backend.decode_rows(torch.device("cuda", 0)) == rows
