"""llama.cpp in Q8_0, head and embedding included, through the C functions of llama-cpp-python."""

import itertools
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from systems import System
from systems.model import STEPS_AT_LEAST, made_from, random_tokens

SYSTEM = System(
    "llama.cpp Q8_0",
    package="llama-cpp-python",
    requirements=("llama-cpp-python==0.3.36", "gguf>=0.19"),
    # What is not built here takes half of the minutes.
    build={"CMAKE_ARGS": "-DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_TESTS=OFF"},
)
SEQUENCES = 64
CELLS = 256  # of the KV cache at first: tokens of all sequences together
BATCH = 2048  # tokens of one call


def checkpoint_of(checkpoint: Path) -> Path:
    """Returns the GGUF file of a checkpoint, made on the first call."""
    from harness.gguf_export import q8_0

    return q8_0(checkpoint, made_from(checkpoint, "q8_0.gguf"))


def load(checkpoint: Path, device: str) -> "LlamaCpp":
    """Maps a file."""
    if device != "cpu":
        raise RuntimeError("the wheel of llama-cpp-python is built for a CPU")
    return LlamaCpp(checkpoint)


class LlamaCpp:
    """A model and a context of llama.cpp."""

    def __init__(self, file: Path) -> None:
        import llama_cpp

        self._cpp, self._file = llama_cpp, file
        llama_cpp.llama_backend_init()
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, None)
        self._model = llama_cpp.llama_model_load_from_file(str(file).encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {file}")
        self._context, self._cells = None, 0
        self._forget(CELLS)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))

    def prefill(self, prompt: int, batch: int) -> float:
        """Times one call of each 2048 tokens."""
        tokens = random_tokens(prompt, batch, self.vocabulary)
        self._forget(batch * prompt)
        start = time.perf_counter()
        self._prompt(tokens)
        return time.perf_counter() - start

    def decode(self, prompt: int, batch: int, tokens: int, limit: float) -> list[float]:
        """Times a prompt, and steps of one token a sequence, the most likely one."""
        inputs = random_tokens(prompt, batch, self.vocabulary)
        self._forget(batch * (prompt + tokens + 1))
        times = [time.perf_counter()]
        logits = self._prompt(inputs)
        for position in range(prompt, prompt + tokens + 1):
            following = logits.argmax(-1).tolist()
            times.append(time.perf_counter())
            if len(times) >= STEPS_AT_LEAST + 2 and times[-1] - times[1] > limit:
                break
            if position < prompt + tokens:
                logits = self._run([(token, position, sequence, True) for sequence, token in enumerate(following)])
        return [end - start for start, end in itertools.pairwise(times)]

    def log_probs(self, tokens: Tensor) -> Tensor:
        """Runs one window, as a prompt."""
        self._forget(len(tokens))
        entries = [(token, position, 0, True) for position, token in enumerate(tokens.tolist())]
        return self._run(entries).log_softmax(-1)

    def weight_bytes(self) -> tuple[int, int]:
        """The size of the tensors in the file; of an embedding that is not the head, a step reads one row."""
        from gguf import GGUFReader

        sizes = {tensor.name: int(tensor.n_bytes) for tensor in GGUFReader(self._file).tensors}
        total = sum(sizes.values())
        return total, total - (sizes["token_embd.weight"] if "output.weight" in sizes else 0)

    def _forget(self, cells: int) -> None:
        """Empties the cache, and makes it larger if it has no room for so many tokens."""
        if cells <= self._cells:
            self._cpp.llama_memory_clear(self._cpp.llama_get_memory(self._context), True)
            return
        if self._context is not None:
            self._cpp.llama_free(self._context)
        settings = self._cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = cells, BATCH, 512
        settings.n_seq_max, settings.kv_unified = SEQUENCES, True
        settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
        self._context, self._cells = self._cpp.llama_init_from_model(self._model, settings), cells
        if not self._context:
            raise RuntimeError(f"llama.cpp has no room for {cells} tokens")

    def _prompt(self, tokens: Tensor) -> Tensor:
        """Runs prompts, int64 [batch, count]; returns the logits of their last tokens, fp32 [batch, vocabulary]."""
        last = tokens.shape[1] - 1
        entries = [
            (token, position, sequence, position == last)
            for sequence, prompt in enumerate(tokens.tolist())
            for position, token in enumerate(prompt)
        ]
        return torch.cat([self._run(entries[i : i + BATCH]) for i in range(0, len(entries), BATCH)])

    def _run(self, entries: Sequence[tuple[int, int, int, bool]]) -> Tensor:
        """Runs tokens, each with its position, its sequence, and whether its logits are wanted.

        Returns:
            fp32 [wanted, vocabulary].
        """
        batch = self._cpp.llama_batch_init(len(entries), 0, 1)
        for row, (token, position, sequence, wanted) in enumerate(entries):
            batch.token[row], batch.pos[row] = token, position
            batch.n_seq_id[row], batch.seq_id[row][0], batch.logits[row] = 1, sequence, wanted
        batch.n_tokens = len(entries)
        status = self._cpp.llama_decode(self._context, batch)
        self._cpp.llama_batch_free(batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        rows = [row for row, entry in enumerate(entries) if entry[3]]
        return torch.stack([self._logits(row) for row in rows]) if rows else torch.empty(0, self.vocabulary)

    def _logits(self, row: int) -> Tensor:
        pointer = self._cpp.llama_get_logits_ith(self._context, row)
        return torch.from_numpy(np.ctypeslib.as_array(pointer, (self.vocabulary,)).copy())
