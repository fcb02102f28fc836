"""A Llama-family base, plain or with a mix merged into it, as one GGUF file."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
from torch import Tensor

from dlm_tui.export.architectures import Architecture, permute_rows
from dlm_tui.export.concatenate import LoraPair
from dlm_tui.export.gguf_file import PlannedTensor, new_writer, tensor_type, write_tensors
from dlm_tui.export.gguf_tokenizer import GgufTokenizer
from dlm_tui.export.requests import ExportRefused
from dlm_tui.export.weights import WeightSource, blocks
from dlm_tui.progress import Progress


def merged_rows(source: WeightSource, name: str, start: int, stop: int, pair: LoraPair | None) -> Tensor:
    """Rows `start` to `stop` of W + up·down in float32; `pair` has its scale folded into up."""
    rows = source.rows(name, start, stop).float()
    if pair is None:
        return rows
    # never in place: the rows may be the loaded model's own
    return rows + pair.lora_B[start:stop] @ pair.lora_A


def _row_blocks(
    source: WeightSource, name: str, shape: tuple[int, ...], heads: int, pair: LoraPair | None
) -> Callable[[], Iterator[Tensor]]:
    def read() -> Iterator[Tensor]:
        columns = shape[1] if len(shape) > 1 else 1
        head_rows = shape[0] // heads if heads else 1
        for start, stop in blocks(shape[0], columns, head_rows):
            yield permute_rows(
                merged_rows(source, name, start, stop, pair), (stop - start) // head_rows if heads else 0
            )

    return read


def plan_model(
    source: WeightSource, architecture: Architecture, quant: str, mix: Mapping[str, LoraPair] | None = None
) -> list[PlannedTensor]:
    """Every tensor of the base's GGUF, with `mix` (module name -> pair) merged in.

    Raises ExportRefused for a weight without a place in GGUF, a missing one, and an adapter on a tied output layer.
    """
    merged = {f"{module}.weight": pair for module, pair in (mix or {}).items()}
    tensors: list[PlannedTensor] = []
    factors = architecture.rope_factors()
    for name in source.names():
        if name.endswith("rotary_emb.inv_freq") or (architecture.tied and name == "lm_head.weight"):
            continue
        target = architecture.gguf_name(name)
        if target is None:
            raise ExportRefused(f"the base's weight {name!r} has no place in a {architecture.family.gguf} GGUF")
        shape = source.shape(name)
        reader = _row_blocks(source, name, shape, architecture.permuted_heads(name), merged.pop(name, None))
        tensors.append(PlannedTensor(target, shape, tensor_type(quant, target, shape), reader))
    if factors is not None:
        tensors.append(
            PlannedTensor("rope_freqs.weight", tuple(factors.shape), gguf.GGMLQuantizationType.F32, lambda: [factors])
        )
    if merged:
        raise ExportRefused(f"the adapters change {next(iter(merged))!r}, which this base's GGUF cannot hold apart")
    present = {tensor.name for tensor in tensors}
    needed = {"token_embd.weight", "output_norm.weight"} | ({"output.weight"} if not architecture.tied else set())
    needed |= {f"blk.{layer}.attn_q.weight" for layer in range(architecture.layers)}
    if needed - present:
        raise ExportRefused(f"the base's checkpoint is incomplete: nothing in it becomes {min(needed - present)!r}")
    return tensors


def _add_architecture(writer: gguf.GGUFWriter, architecture: Architecture) -> None:
    writer.add_vocab_size(architecture.vocab)
    writer.add_context_length(architecture.context_length)
    writer.add_embedding_length(architecture.hidden)
    writer.add_block_count(architecture.layers)
    writer.add_feed_forward_length(architecture.feed_forward)
    writer.add_head_count(architecture.heads)
    writer.add_head_count_kv(architecture.kv_heads)
    writer.add_key_length(architecture.head_dim)
    writer.add_value_length(architecture.head_dim)
    writer.add_rope_dimension_count(architecture.head_dim)
    writer.add_rope_freq_base(architecture.rope_theta)
    writer.add_layer_norm_rms_eps(architecture.epsilon)
    if architecture.rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(architecture.rope["factor"]))


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: GgufTokenizer) -> None:
    writer.add_tokenizer_model(tokenizer.model)
    writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types(tokenizer.types)
    if tokenizer.scores:
        writer.add_token_scores(tokenizer.scores)
    if tokenizer.merges:
        writer.add_token_merges(tokenizer.merges)
    for name, number in tokenizer.special.items():
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(tokenizer.add_bos)
    writer.add_add_eos_token(tokenizer.add_eos)
    if tokenizer.add_space_prefix is not None:
        writer.add_add_space_prefix(tokenizer.add_space_prefix)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def write_model(
    path: Path,
    source: WeightSource,
    architecture: Architecture,
    tokenizer: GgufTokenizer,
    quant: str,
    *,
    name: str,
    mix: Mapping[str, LoraPair] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Generator[Progress, None, None]:
    """Write the base, or base plus mix, to `path`. Progress counts bytes. `extra` are string metadata."""
    tensors = plan_model(source, architecture, quant, mix)
    writer = new_writer(path, architecture.family.gguf, quant)
    writer.add_type("model")
    writer.add_name(name)
    for key, value in (extra or {}).items():
        writer.add_string(key, str(value))
    _add_architecture(writer, architecture)
    _add_tokenizer(writer, tokenizer)
    yield from write_tensors(writer, path, tensors)
