"""The main job on the embedded default model: load it in 8 bit, ask a question, say what was saved."""

import time
from typing import Any

import torch
import transformers
from rich.console import Console
from transformers import AutoTokenizer, TextStreamer

import llmint8
from llmint8.default_model import default_model
from llmint8.quantize import int8_layers

QUESTION = "What is the capital of France?"


def bytes_of_weights(model: torch.nn.Module) -> tuple[int, int]:
    """Returns the bytes of a model's parameters as they are, and with 16 bit for what is int8."""
    now = sum(p.numel() * p.element_size() for p in model.parameters())
    layers = [layer for _, layer in int8_layers(model)]
    return now, now + sum(layer.weight.numel() - 4 * layer.weight_scale.numel() for layer in layers)


def answer(model: Any, tokenizer: Any, question: str, console: Console) -> float:
    """Prints the answer to a question as it comes and returns the tokens per second of the decoding."""
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    times: list[float] = []

    class Streamer(TextStreamer):
        def put(self, value: torch.Tensor) -> None:
            times.append(time.perf_counter())
            super().put(value)

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            console.print(text, end="\n" if stream_end else "", highlight=False, markup=False, soft_wrap=True)

    streamer = Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    model.generate(**prompt, max_new_tokens=64, do_sample=False, streamer=streamer)
    return (len(times) - 2) / (times[-1] - times[1])  # times[0] is the prompt's, times[1] the end of its prefill


def main() -> None:
    """Runs the demo."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    console = Console()
    with console.status("Finding the default model (converted once, about 20 s)"):
        path = default_model()
    with console.status("Loading in 8 bit"):
        start = time.perf_counter()
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = llmint8.from_pretrained(path, load_in_8bit=True)
        seconds = time.perf_counter() - start
    console.print(f"[bold]{path.name}[/], {len(list(int8_layers(model)))} layers in 8 bit, loaded in {seconds:.1f} s\n")
    console.print(f"[bold]You:[/] {QUESTION}")
    console.print("[bold]Model:[/] ", end="")
    rate = answer(model, tokenizer, QUESTION, console)
    after, before = bytes_of_weights(model)
    console.print(
        f"\nweights in 16 bit {before / 1e6:.0f} MB, in 8 bit {after / 1e6:.0f} MB "
        f"({after / before:.2f}x)\n{rate:.1f} tokens/s on {model.device.type} with {torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    main()
