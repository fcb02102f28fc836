"""A base, plain or with a mix merged into it, as one GGUF file."""

from __future__ import annotations

import math
import re
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gguf
from gguf import GGMLQuantizationType as Type
from torch import Tensor

from dlm_tui.export.architectures import Architecture, Place, permute_rows
from dlm_tui.export.concatenate import LoraPair
from dlm_tui.export.gguf_file import PlannedTensor, new_writer, write_tensors
from dlm_tui.export.gguf_tokenizer import GgufTokenizer
from dlm_tui.export.quantisation.imatrix import ImportanceMatrix
from dlm_tui.export.quantisation.recipes import tensor_types
from dlm_tui.export.requests import ExportRefused
from dlm_tui.export.weights import WeightSource, blocks
from dlm_tui.progress import Progress


def merged_rows(source: WeightSource, name: str, start: int, stop: int, pair: LoraPair | None) -> Tensor:
    """Rows `start` to `stop` of W + lora_B·lora_A in float32; the scale of `pair` is folded into lora_B."""
    rows = source.rows(name, start, stop).float()
    if pair is None:
        return rows
    # never in place: the rows may be the loaded model's own
    return rows + pair.lora_B[start:stop] @ pair.lora_A


@dataclass(frozen=True)
class _Piece:
    """Rows of one weight of the base that become (a part of) a tensor."""

    source: WeightSource
    weight: str
    place: Place
    heads: int
    shift: float
    pair: LoraPair | None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that this piece has in the file, without the axis of the experts."""
        shape = self.source.shape(self.weight)
        stacked = self.place.expert is not None and len(shape) == 3
        rows, *columns = shape[1:] if stacked else shape
        return (rows // self.place.parts, *columns)

    def blocks(self) -> Iterator[Tensor]:
        """The rows in float32, a few at a time, as the file wants them."""
        rows, *columns = self.shape
        head_rows = rows // self.heads if self.heads else 1
        for start, stop in blocks(rows, columns[0] if columns else 1, head_rows):
            block = self._rows(start, stop)
            if self.shift:
                block = block + self.shift
            yield permute_rows(block, (stop - start) // head_rows if self.heads else 0)

    def _rows(self, start: int, stop: int) -> Tensor:
        expert = self.place.expert
        if expert is None or len(self.source.shape(self.weight)) == 2:
            return merged_rows(self.source, self.weight, start, stop, self.pair)
        first = self.place.part * self.shape[0]
        return self.source.rows(self.weight, expert, expert + 1)[0, first + start : first + stop].float()


def plan_model(
    source: WeightSource,
    architecture: Architecture,
    quant: str,
    mix: Mapping[str, LoraPair] | None = None,
    importance: ImportanceMatrix | None = None,
) -> list[PlannedTensor]:
    """Every tensor of the base's GGUF, with `mix` (module name -> pair) merged in and `importance` for its matrices.

    Raises ExportRefused for a weight without a place in GGUF, a missing one, an adapter on a tied output layer, and an
    importance matrix of another base.
    """
    pieces = _pieces(source, architecture, mix or {})
    shapes = {name: _whole_shape(name, parts, architecture) for name, parts in pieces.items()}
    types = tensor_types(quant, list(shapes.items()), architecture.facts, weighted=importance is not None)
    tensors = []
    for name, parts in pieces.items():
        matrices = shapes[name][0] if len(shapes[name]) == 3 else 1
        weights = importance.of(name, matrices, shapes[name][-1]) if importance and len(shapes[name]) > 1 else None
        tensors.append(PlannedTensor(name, shapes[name], types[name], partial(_read, parts), weights))
    for name, factors in architecture.rope_factors().items():
        tensors.append(PlannedTensor(name, tuple(factors.shape), Type.F32, partial(iter, (factors,))))
    return tensors


def _read(pieces: list[_Piece]) -> Iterator[Tensor]:
    for piece in pieces:
        yield from piece.blocks()


def _pieces(source: WeightSource, architecture: Architecture, mix: Mapping[str, LoraPair]) -> dict[str, list[_Piece]]:
    """GGUF name -> what it is made of, experts in their order."""
    merged = {f"{module}.weight": pair for module, pair in mix.items()}
    pieces: dict[str, list[_Piece]] = {}
    for name in source.names():
        if name.endswith("rotary_emb.inv_freq") or (architecture.tied and name == "lm_head.weight"):
            continue
        places = architecture.places(name)
        if not places:
            raise ExportRefused(f"the base's weight {name!r} has no place in a {architecture.family.gguf} GGUF")
        heads, shift, pair = architecture.permuted_heads(name), architecture.shift(name), merged.pop(name, None)
        for place in places:
            pieces.setdefault(place.tensor, []).append(_Piece(source, name, place, heads, shift, pair))
    if merged:
        raise ExportRefused(f"the adapters change {next(iter(merged))!r}, which this base's GGUF cannot hold apart")
    _check_complete(set(pieces), architecture)
    return {name: sorted(parts, key=lambda piece: piece.place.expert or 0) for name, parts in pieces.items()}


def _whole_shape(name: str, parts: list[_Piece], architecture: Architecture) -> tuple[int, ...]:
    if parts[0].place.expert is None:
        return parts[0].shape
    if [part.place.expert for part in parts] != list(range(architecture.experts)):
        raise ExportRefused(f"the base's checkpoint is incomplete: {name!r} lacks experts")
    return (architecture.experts, *parts[0].shape)


def _check_complete(present: set[str], architecture: Architecture) -> None:
    needed = {"token_embd.weight", "output_norm.weight"} | ({"output.weight"} if not architecture.tied else set())
    ends = ("attn_output", "ffn_down_exps" if architecture.experts else "ffn_down")
    needed |= {f"blk.{layer}.{end}.weight" for layer in range(architecture.layers) for end in ends}
    if needed - present:
        raise ExportRefused(f"the base's checkpoint is incomplete: nothing in it becomes {min(needed - present)!r}")


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
    writer.add_rope_dimension_count(architecture.rotary_dim)
    writer.add_rope_freq_base(architecture.rope_theta)
    writer.add_layer_norm_rms_eps(architecture.epsilon)
    _add_rope_scaling(writer, architecture)
    add = {int: writer.add_uint32, float: writer.add_float32, bool: writer.add_bool, str: writer.add_string}
    for key, value in architecture.metadata.items():
        add[type(value)](f"{architecture.family.gguf}.{key}", value)


def _add_rope_scaling(writer: gguf.GGUFWriter, architecture: Architecture) -> None:
    rope = architecture.rope
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    elif rope["rope_type"] == "longrope":
        original = int(rope["original_max_position_embeddings"])
        stretch = float(rope["factor"])
        attention = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(float(rope.get("attention_factor") or attention))


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


def _told_name(name: str, tokenizer: GgufTokenizer) -> str:
    """llama.cpp looks for Phi 3 in a model's name and then for `</s>` in its tokens, and crashes without one."""
    return name if "</s>" in tokenizer.tokens else re.sub(r"(?i)phi-?3", "phi 3", name)


def write_model(
    path: Path,
    source: WeightSource,
    architecture: Architecture,
    tokenizer: GgufTokenizer,
    quant: str,
    *,
    name: str,
    mix: Mapping[str, LoraPair] | None = None,
    importance: ImportanceMatrix | None = None,
) -> Generator[Progress, None, None]:
    """Write the base, or base plus mix, to `path`. Progress counts bytes."""
    tensors = plan_model(source, architecture, quant, mix, importance)
    writer = new_writer(path, architecture.family.gguf, quant)
    writer.add_type("model")
    writer.add_name(_told_name(name, tokenizer))
    _add_architecture(writer, architecture)
    _add_tokenizer(writer, tokenizer)
    yield from write_tensors(writer, path, tensors)
