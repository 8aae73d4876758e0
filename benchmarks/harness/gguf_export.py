"""Writes a Llama checkpoint as a GGUF file in Q8_0, for llama.cpp."""

from pathlib import Path

import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, quants
from rich.console import Console
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

# Name of Hugging Face -> name of GGUF, of a layer's tensors.
LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def q8_0(checkpoint: Path, file: Path) -> Path:
    """Returns a GGUF file of a checkpoint, every matrix in Q8_0, made on the first call.

    It has no vocabulary: it takes and gives tokens.

    Args:
        checkpoint: Folder of a 16-bit Llama.
        file: To write.
    """
    if file.is_file():
        return file
    with Console(stderr=True).status(f"Writing {file.name}"):
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
        unfinished = file.with_suffix(".unfinished")
        writer = GGUFWriter(unfinished, "llama")
        _write_header(writer, model.config)
        for name, tensor in model.state_dict().items():
            if name == "lm_head.weight" and model.config.tie_word_embeddings:
                continue
            _write_tensor(writer, name, tensor, model.config)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        unfinished.rename(file)
    return file


def _write_header(writer: GGUFWriter, config: LlamaConfig) -> None:
    head = config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0)
    writer.add_tokenizer_model("none")


def _write_tensor(writer: GGUFWriter, name: str, tensor: Tensor, config: LlamaConfig) -> None:
    values = tensor.float()
    if name.endswith("q_proj.weight"):
        values = _interleave(values, config.num_attention_heads)
    elif name.endswith("k_proj.weight"):
        values = _interleave(values, config.num_key_value_heads)
    array = values.numpy()
    if values.dim() == 1:
        writer.add_tensor(_gguf_name(name), array)
    else:
        codes = quants.quantize(array, GGMLQuantizationType.Q8_0)
        writer.add_tensor(_gguf_name(name), codes, raw_dtype=GGMLQuantizationType.Q8_0)


def _interleave(weight: Tensor, heads: int) -> Tensor:
    """Llama.cpp rotates neighbouring features, Hugging Face the halves of a head."""
    n, k = weight.shape
    return weight.view(heads, 2, n // heads // 2, k).transpose(1, 2).reshape(n, k)


def _gguf_name(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    if name == "lm_head.weight":
        return "output.weight"
    _, _, layer, *rest, suffix = name.split(".")
    return f"blk.{layer}.{LAYER['.'.join(rest)]}.{suffix}"
