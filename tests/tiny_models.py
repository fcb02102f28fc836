"""Tiny random bases and adapters for tests: real transformers architectures, a real byte-level BPE tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from dlm_tui.model import weights_plan
from dlm_tui.model.adapters import Adapter, LowRank, layer_shape
from dlm_tui.model.base import Base
from dlm_tui.model.base_loading import load_base
from dlm_tui.model.registry import resolve_base
from dlm_tui.progress import run_to_end

CORPUS = [
    "The harbour master counts the boats when the tide turns and the bell rings twice.",
    "How do I bake bread with rye flour? Mix, wait, fold, wait, bake until it sounds hollow.",
    "Dear neighbour, the ladder you lent me stands behind the shed again. Thank you kindly!",
    "Grüße aus dem Café: naïve façade, 東京, Ωμέγα, 🙂 and plain words again.",
]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {**SMALL, "tie_word_embeddings": True},
    "llama-scaled": {**SMALL, "model_type": "llama", "rope_parameters": LLAMA3_ROPE},
    "mistral": {**SMALL, "sliding_window": 12},
    "qwen2": dict(SMALL),
    "qwen3": {**SMALL, "head_dim": 16},
    "gemma2": {**SMALL, "head_dim": 8, "sliding_window": 12, "query_pre_attn_scalar": 8},
    "gemma3_text": {
        **SMALL,
        "head_dim": 8,
        "sliding_window": 12,
        "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    },
    "phi3": {**SMALL, "sliding_window": None},
    "olmo2": dict(SMALL),
    "smollm3": {**SMALL, "no_rope_layers": [1, 0, 1]},
    "granite": {
        **SMALL,
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.6,
        "logits_scaling": 2.0,
    },
    "phi3-partial": {
        **SMALL,
        "model_type": "phi3",
        "sliding_window": 12,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    },
    "qwen3_moe": {
        **SMALL,
        "head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 48,
        "norm_topk_prob": True,
    },
    "mixtral": {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "stablelm": {**SMALL, "layer_norm_eps": 1e-5},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "bos_token_id": 0, "eos_token_id": 1},
}


def tiny_tokenizer(vocab_size: int = 384) -> PreTrainedTokenizerFast:
    """A byte-level BPE with a chat template; every UTF-8 text can be written with it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|im_start|>", "<|im_end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|pad|>"
    )
    fast.chat_template = TEMPLATE
    return fast


def write_tiny_base(folder: Path, architecture: str = "llama", seed: int = 0, **changes: Any) -> Path:
    """Save a random model of `architecture` with its tokenizer as a model folder."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    settings = {"model_type": architecture, "vocab_size": len(tokenizer), **ARCHITECTURES[architecture], **changes}
    config = AutoConfig.for_model(**settings)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # large enough that attention and the adapters matter, biases and norms away from their neutral values
            spread = 0.1 if parameter.dim() == 1 else 0.2
            parameter.add_(torch.randn_like(parameter) * spread)
            if not torch.isfinite(parameter).all():
                raise ValueError(name)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_base(folder: Path, architecture: str = "llama", seed: int = 0, **changes: Any) -> Base:
    """A tiny base, written to `folder` unless it is there, and loaded as a person's own model folder is."""
    if not (folder / "config.json").is_file():
        write_tiny_base(folder, architecture, seed, **changes)
    return run_to_end(load_base(resolve_base(f"hf:test/{architecture}", folder), device="cpu"))


def offloaded_base(folder: Path, place: Path, room: int = 1000, architecture: str = "llama") -> Base:
    """The base in `folder` as on a machine with `room` bytes for it: what has none stays on the disk."""
    source = msgspec.structs.replace(resolve_base(f"hf:test/{architecture}", folder), offload=place)
    with mock.patch.object(weights_plan, "available_memory", lambda: room):
        return run_to_end(load_base(source, device="cpu"))


def target_names(base: Base, *suffixes: str) -> list[str]:
    """Names of the linear layers whose last part is one of `suffixes` (default: the attention projections)."""
    wanted = suffixes or ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "c_attn")
    return [name for name, _ in base.model.named_modules() if name.rsplit(".", 1)[-1] in wanted]


def random_adapter(
    base: Base, name: str, rank: int = 4, seed: int = 0, targets: list[str] | None = None, size: float = 0.3
) -> Adapter:
    """An adapter with random non-zero pairs on `targets` (default: the attention projections)."""
    generator = torch.Generator().manual_seed(seed)
    modules = {}
    for target in targets or target_names(base):
        module: nn.Module = base.target_module(target)
        out_features, in_features = layer_shape(module)
        modules[target] = LowRank(
            torch.randn(rank, in_features, generator=generator) * size,
            torch.randn(out_features, rank, generator=generator) * size,
            2.0,
        )
    return Adapter(name, modules)


def token_adapter(base: Base, name: str, rank: int = 4, seed: int = 0, size: float = 0.3) -> Adapter:
    """A random adapter on the attention projections and on the token embedding."""
    generator = torch.Generator().manual_seed(seed + 100)
    embedding: Any = base.model.get_input_embeddings()  # type: ignore[operator]
    module = next(module for module, one in base.model.named_modules() if one is embedding)
    lora_A = torch.randn(rank, embedding.num_embeddings, generator=generator) * size
    lora_B = torch.randn(embedding.embedding_dim, rank, generator=generator) * size
    plain = random_adapter(base, name, rank=rank, seed=seed, size=size)
    return Adapter(name, {**plain.modules, module: LowRank(lora_A, lora_B, 2.0, tokens=True)})


def read_config(folder: Path) -> dict[str, Any]:
    """The adapter configuration in a folder."""
    return dict(json.loads((folder / "adapter_config.json").read_text()))
