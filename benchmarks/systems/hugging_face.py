"""A model of transformers, whatever its layers are: through `model(...)` and `model.generate`."""

import itertools
import time
from typing import Any

import torch
from torch import Tensor

from systems.model import STEPS_AT_LEAST, random_tokens


class HuggingFace:
    """Runs a loaded model; cache and compilation are transformers' defaults for all of them."""

    def __init__(self, model: Any) -> None:
        self.model = model.eval()
        self.vocabulary = model.config.get_text_config().vocab_size

    def prefill(self, prompt: int, batch: int) -> float:
        """Times one call."""
        tokens = self._tokens(prompt, batch)
        self._wait()
        with torch.no_grad():
            start = time.perf_counter()
            self.model(tokens, use_cache=True, logits_to_keep=1)
            self._wait()
            return time.perf_counter() - start

    def decode(self, prompt: int, batch: int, tokens: int, limit: float) -> list[float]:
        """Times the steps of one `generate`."""
        times: list[float] = []

        def note_the_time(input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
            self._wait()
            times.append(time.perf_counter())
            late = len(times) >= STEPS_AT_LEAST + 2 and times[-1] - times[1] > limit
            return torch.full((len(input_ids),), late, device=input_ids.device)

        inputs = self._tokens(prompt, batch)
        self._wait()
        times.append(time.perf_counter())
        self.model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            min_new_tokens=tokens + 1,
            max_new_tokens=tokens + 1,
            do_sample=False,
            pad_token_id=0,
            stopping_criteria=[note_the_time],
        )
        return [end - start for start, end in itertools.pairwise(times)]

    def log_probs(self, tokens: Tensor) -> Tensor:
        """Runs one window, as a prompt."""
        with torch.no_grad():
            return self.model(tokens[None].to(self.model.device)).logits[0].float().log_softmax(-1).cpu()

    def weight_bytes(self) -> tuple[int, int]:
        """Sums up the parameters and buffers; a step reads one row of an embedding that is not the head, too."""
        total = sum(_bytes(tensor) for tensor in _tensors(self.model).values())
        embedding, head = self.model.get_input_embeddings(), self.model.get_output_embeddings()
        tied = head is None or head.weight.data_ptr() == embedding.weight.data_ptr()
        return total, total - (0 if tied else _bytes(embedding.weight))

    def _tokens(self, count: int, batch: int) -> Tensor:
        return random_tokens(count, batch, self.vocabulary).to(self.model.device)

    def _wait(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)


def _tensors(model: Any) -> dict[int, Tensor]:
    return {id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())}


def _bytes(tensor: Tensor) -> int:
    """Those of what a tensor is made of: subclasses hold codes and scales behind the shape of a float weight."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return sum(_bytes(getattr(tensor, name)) for name in names)
    scale = getattr(tensor, "SCB", None)  # of bitsandbytes, which keeps it beside the codes
    return tensor.nbytes + (0 if scale is None else scale.nbytes)
