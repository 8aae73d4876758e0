"""A whole model on a GPU: prefill and decode in 16 bit, in int8 and by bitsandbytes, of random weights made there.

Decoding is measured twice: through `generate`, where launching each kernel takes the host time, and as a CUDA graph of
one step, in which nothing but the kernels counts. Without a GPU it says so and measures nothing.
"""

import gc
import importlib.util
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from harness.results import Run, show
from rich.console import Console
from systems.hugging_face import HuggingFace
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

import llmint8

SIZES = {
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 8},
}
LAYERS = {"8b": 32, "1b": 16}
VOCABULARY = 128256
DECODE_PROMPT = 64


def to_bitsandbytes(model: nn.Module) -> nn.Module:
    """Replaces all linear layers but the head by those of bitsandbytes, with its default threshold."""
    from bitsandbytes.nn import Linear8bitLt

    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and not name.endswith("lm_head"):
            theirs = Linear8bitLt(layer.in_features, layer.out_features, bias=False, has_fp16_weights=False)
            theirs.load_state_dict({"weight": layer.weight.detach().cpu().half()})
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, theirs.to("cuda"))
    return model


SYSTEMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "transformers bf16": lambda model: model,
    "llmint8": llmint8.quantize_,
    "bitsandbytes": to_bitsandbytes,
}


def decode_graph(model: Any, batch: int) -> float:
    """Returns the seconds of a step of decoding that is replayed as a CUDA graph."""
    cache = StaticCache(config=model.config, max_cache_len=1024)
    prompt = torch.randint(0, VOCABULARY, (batch, DECODE_PROMPT), device="cuda")
    model(prompt, past_key_values=cache, logits_to_keep=1)
    token = prompt[:, :1].clone()
    positions = torch.full((batch, 1), DECODE_PROMPT, device="cuda")
    call = lambda: model(token, past_key_values=cache, position_ids=positions)  # noqa: E731
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    times = []
    for _ in range(20):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def measure(model: Any, batches: list[int], prompts: list[int], graph: bool) -> Iterator[tuple[str, str, float, str]]:
    """Yields figure, setting, value and unit."""
    adapter = HuggingFace(model)
    yield "weights", "", adapter.weight_bytes()[0], "B"
    for prompt in prompts:
        adapter.prefill(prompt, 1)
        seconds = statistics.median(adapter.prefill(prompt, 1) for _ in range(5))
        yield "prefill", f"prompt={prompt}", prompt / seconds, "tokens/s"
    for batch in batches:
        setting = f"prompt={DECODE_PROMPT} batch={batch}"
        steps = adapter.decode(DECODE_PROMPT, batch, 24, 10.0)
        yield "decode", setting, batch / statistics.median(steps[4:]), "tokens/s"
        if graph:
            yield "decode, CUDA graph", setting, batch / decode_graph(model, batch), "tokens/s"


def main(
    size: Annotated[str, typer.Option(help=f"Of the Llama: {', '.join(SIZES)}.")] = "8b",
    layers: Annotated[int, typer.Option(help="All of them if 0.")] = 0,
    batches: Annotated[str, typer.Option(help="Sequences that are decoded together.")] = "1,8,32",
    prompts: Annotated[str, typer.Option(help="Tokens of a prompt.")] = "128,512,2048",
    output: Annotated[Path | None, typer.Option(help="CSV to append to.")] = None,
) -> None:
    """Compares the systems, one after the other on the same weights."""
    if not torch.cuda.is_available():
        print("no GPU: nothing was measured")
        return
    config = LlamaConfig(**SIZES[size], num_hidden_layers=layers or LAYERS[size], vocab_size=VOCABULARY)
    run, table = Run("generation_gpu", "cuda"), {}
    try:
        for name, convert in SYSTEMS.items():
            if name == "bitsandbytes" and importlib.util.find_spec("bitsandbytes") is None:
                continue
            with Console(stderr=True).status(name), torch.no_grad():
                torch.manual_seed(0)
                with torch.device("cuda"):
                    model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
                model = convert(model).eval()
                gc.collect()
                torch.cuda.empty_cache()
                sizes = (list(map(int, text.split(","))) for text in (batches, prompts))
                figures = measure(model, *sizes, graph=name != "bitsandbytes")  # which waits for the host
                row = table.setdefault(name, {"system": name})
                for figure, setting, value, unit in figures:
                    run.add(name, figure, value, unit, model=f"random-llama-{size}", setting=setting)
                    shown = f"{value / 1e9:.2f} GB" if unit == "B" else f"{value:.1f}"
                    row[f"{figure} {setting}".strip()] = shown
                    print(name, figure, setting, shown, flush=True)
                del model
                gc.collect()
                torch.cuda.empty_cache()
    finally:  # what was measured before an interruption counts
        show(f"Llama {size}, random weights, {torch.cuda.get_device_name()}", list(table.values()))
        run.save(output)


if __name__ == "__main__":
    typer.run(main)
