"""Models of random weights in 8 bit: the error of their logits beside that of bitsandbytes, in the same run."""

import logging
import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from harness.results import Cell, Cells, Run, show
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from llmint8 import Int8Config, from_pretrained
from llmint8.quantize import int8_layers

VOCABULARY = 5000
WIDTH = 768  # of the smallest GPT-2, OPT and T5 models
CONFIGS = {
    "GPT-2": transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=4, n_head=12, bos_token_id=0, eos_token_id=1
    ),
    "OPT": transformers.OPTConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, ffn_dim=4 * WIDTH, num_hidden_layers=4, word_embed_proj_dim=WIDTH
    ),
    "T5": transformers.T5Config(
        vocab_size=VOCABULARY, d_model=WIDTH, d_ff=4 * WIDTH, num_layers=4, num_heads=12, decoder_start_token_id=0
    ),
}
CLASSES = {
    "GPT-2": transformers.GPT2LMHeadModel,
    "OPT": transformers.OPTForCausalLM,
    "T5": transformers.T5ForConditionalGeneration,
}
SCHEMES = {
    "default": Int8Config(),
    "budget 1/16": Int8Config(budget=1 / 16),
    "budget 1/4": Int8Config(budget=1 / 4),
    "budget 32": Int8Config(budget=32, threshold=0.0),
    "threshold 6.0 (paper)": Int8Config(threshold=6.0, symmetric=True),
    "weights only": Int8Config(budget=1 << 20, threshold=0.0),  # every column in floating point
}


def logits_of(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Returns the logits of a model, fp32 [sequences, tokens, vocabulary]."""
    with torch.inference_mode():
        return model(**inputs).logits.float()


def inputs_of(model: PreTrainedModel, sequences: int, tokens: int) -> dict[str, Tensor]:
    """Returns random tokens, int64 [sequences, tokens], the same for the encoder and the decoder of a T5."""
    ids = torch.randint(10, VOCABULARY, (sequences, tokens), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, **({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})}


def measure(architecture: str, sequences: int, tokens: int, seed: int) -> list[Cells]:
    """Measures one architecture.

    Args:
        architecture: A key of `CONFIGS`.
        sequences: Sequences of the batch.
        tokens: Tokens of a sequence.
        seed: Seed of the weights.

    Returns:
        A row for each scheme: the relative error `||logits - fp32|| / ||fp32||` and its ratio to that of bitsandbytes.
    """
    torch.manual_seed(seed)
    model_class: Any = CLASSES[architecture]
    fp32 = model_class(CONFIGS[architecture]).eval()
    inputs = inputs_of(fp32, sequences, tokens)
    expected = logits_of(fp32, inputs)

    def error(model: nn.Module) -> float:
        return ((logits_of(model, inputs) - expected).norm() / expected.norm()).item()

    with tempfile.TemporaryDirectory() as folder:
        fp32.save_pretrained(folder)
        ours = from_pretrained(folder, dtype=torch.float32)
        quantization = BitsAndBytesConfig(load_in_8bit=True)
        theirs = model_class.from_pretrained(folder, quantization_config=quantization, dtype=torch.float32)
    errors = {}
    for scheme, config in SCHEMES.items():
        for _, layer in int8_layers(ours):
            layer.int8_config = config
        errors[scheme] = error(ours)
    errors["bitsandbytes"] = error(theirs)
    return [
        {
            "scheme": scheme,
            "model": architecture,
            "relative error": Cell(value, 5),
            "/ bitsandbytes": Cell(value / errors["bitsandbytes"], 2),
        }
        for scheme, value in errors.items()
    ]


def main(
    sequences: Annotated[int, typer.Option(help="Sequences of the batch.")] = 4,
    tokens: Annotated[int, typer.Option(help="Tokens of a sequence.")] = 128,
    seed: Annotated[int, typer.Option(help="Of the weights.")] = 0,
    output: Annotated[Path | None, typer.Option(help="CSV to append to.")] = None,
) -> None:
    """Measures the relative error of the logits of randomly initialized models, in fp32 but for the int8 layers.

    Random weights have no outlier features: what is compared is the plain rounding, of Linear and Conv1D layers.
    """
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    run, rows = Run("random_models"), []
    for architecture in CONFIGS:
        found = measure(architecture, sequences, tokens, seed)
        run.add_table(found, model=architecture, setting=f"sequences={sequences} tokens={tokens} seed={seed}")
        rows += found
    show(f"Relative error of logits, random models of 4 layers, width {WIDTH}, {sequences} x {tokens} tokens", rows)
    run.save(output)


if __name__ == "__main__":
    typer.run(main)
