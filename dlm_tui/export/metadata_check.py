"""What a written GGUF says of itself, key by key, against the configuration and the tokenizer of its base.

A runtime answers much alike with a wrong rope base or without a soft cap, at least over short prompts: numbers alone do
not tell. So every key is read back, and what it should say is worked out here once more, from the configuration and
by transformers' own functions, never by what the writer made of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from gguf import LlamaFileType, TokenType

from dlm_tui.export.gguf_tokenizer import ENDS_BY_NAME
from dlm_tui.export.requests import ExportRefused
from dlm_tui.export.stored_weights import read_back
from dlm_tui.model.gguf_tensors import TensorReader, Value

Values = Mapping[str, Value]

_NAMES = {"mistral": "llama", "mixtral": "llama", "gemma3_text": "gemma3", "qwen3_moe": "qwen3moe"}
"""What llama.cpp calls an architecture, where that is not its `model_type`."""

_ATTRIBUTES = {
    "vocab_size": "vocab_size",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_OWN = {
    "gemma2": {
        "attn_logit_softcapping": "attn_logit_softcapping",
        "final_logit_softcapping": "final_logit_softcapping",
        "attention.sliding_window": "sliding_window",
    },
    "gemma3_text": {"attention.sliding_window": "sliding_window"},
    "granite": {
        "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier",
        "attention.scale": "attention_multiplier",
        "logit_scale": "logits_scaling",
    },
    "mixtral": {"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"},
    "qwen3_moe": {
        "expert_count": "num_experts",
        "expert_used_count": "num_experts_per_tok",
        "expert_feed_forward_length": "moe_intermediate_size",
    },
}
"""Key without the architecture's name -> attribute of the configuration."""

_SPECIAL = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
_GEMMA3_PERIOD = 6
"""Every how many layers llama.cpp lets one of Gemma 3 attend to everything when no key says it."""

_FREE = ("general.name", "general.quantization_version")
"""Keys that may say anything."""
_SPLITTING_RULES = {(7, False): "gpt-2", (1, False): "smollm", (1, True): "qwen2", (3, True): "llama-bpe"}
"""How many digits stay together, and whether `'LL` is cut off as `'ll` is -> llama.cpp's name of the rule."""


def check_metadata(path: Path, config: Any, tokenizer: Any, quant: str, stop_ids: Collection[int] = ()) -> None:
    """Raises ExportRefused naming the first key that is missing, that should not be there, or that says another thing
    than the base's `config` (of the decoder), its tokenizer, and the ids that end its answers."""
    reader = read_back(path)
    found, kind = reader.values(), str(config.model_type)
    name = _NAMES.get(kind, kind)
    expected: dict[str, Value] = {
        "general.architecture": name,
        "general.type": "model",
        "general.file_type": int(LlamaFileType["ALL_F32" if quant == "f32" else f"MOSTLY_{quant.upper()}"]),
        **{f"{name}.{key}": value for key, value in {**_shape(config, kind), **_rope(config)}.items()},
        **_tokens(tokenizer, int(config.vocab_size)),
        **_splitting(tokenizer, found),
        **_stops(tokenizer, stop_ids),
    }
    _check_layers(found, config, kind, name)
    allowed = {*expected, *_FREE, f"{name}.attention.sliding_window_pattern", "tokenizer.ggml.scores"}
    for key in [*expected, *sorted(set(found) - allowed)]:
        _compare(key, found.get(key), expected.get(key), path.name)
    _check_tensors(reader, config)


def check_adapter_metadata(path: Path, config: Any) -> None:
    """The same of an adapter's file: a LoRA for bases of this kind, whose scale is the one that it is loaded at."""
    found, kind = read_back(path).values(), str(config.model_type)
    expected: dict[str, Value] = {
        "general.architecture": _NAMES.get(kind, kind),
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 0.0,
    }
    for key in [*expected, *sorted(set(found) - {*expected, *_FREE})]:
        _compare(key, found.get(key), expected.get(key), path.name)


def _shape(config: Any, kind: str) -> dict[str, Value]:
    own = _OWN.get(kind, {})
    head = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    found: dict[str, Value] = {key: getattr(config, name) for key, name in {**_ATTRIBUTES, **own}.items()}
    context, window = int(config.max_position_embeddings), getattr(config, "sliding_window", None)
    if window and "attention.sliding_window" not in own and getattr(config, "use_sliding_window", True):
        context = min(context, int(window))  # llama.cpp knows no window in these families
    return {**found, "context_length": context, "attention.key_length": head, "attention.value_length": head}


def _rope_settings(config: Any) -> dict[str, Any]:
    """Those of the layers that attend to everything, with `rope_type` and `rope_theta`."""
    rope = dict(config.rope_parameters or {})
    return {"rope_type": "default", "rope_theta": 10000.0, **(rope.get("full_attention") or rope)}


def _rope(config: Any) -> dict[str, Value]:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = _rope_settings(config)
    head = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    found: dict[str, Value] = {
        "rope.freq_base": float(rope["rope_theta"]),
        "rope.dimension_count": int(head * (rope.get("partial_rotary_factor") or 1.0)),
    }
    if local := (config.rope_parameters or {}).get("sliding_attention"):
        found["rope.freq_base_swa"] = float(local["rope_theta"])
    if rope["rope_type"] == "linear":
        found |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    elif rope["rope_type"] == "longrope":
        _, attention = ROPE_INIT_FUNCTIONS["longrope"](config, torch.device("cpu"))
        found["rope.scaling.original_context_length"] = int(rope["original_max_position_embeddings"])
        found["rope.scaling.attn_factor"] = float(attention)
    return found


def _check_layers(found: Values, config: Any, kind: str, name: str) -> None:
    """Gemma 3's key for its windows, which only says something together with the number of layers."""
    key = f"{name}.attention.sliding_window_pattern"
    if kind != "gemma3_text":
        _compare(key, found.get(key), None, "the written GGUF")
        return
    period = found.get(key, _GEMMA3_PERIOD)
    every = period if isinstance(period, int) else 0
    layers = range(1, int(config.num_hidden_layers) + 1)
    read = ["full_attention" if every and layer % every == 0 else "sliding_attention" for layer in layers]
    if read != list(config.layer_types):
        raise _wrong(key, found.get(key), f"a period that gives {' '.join(config.layer_types)}", "the written GGUF")


def _tokens(tokenizer: Any, size: int) -> dict[str, Value]:
    """Vocabulary, numbers and chat template."""
    added = tokenizer.added_tokens_decoder
    tokens = [f"[PAD{number}]" for number in range(size)]
    for text, number in tokenizer.get_vocab().items():
        tokens[number] = text
    for number, token in added.items():
        tokens[number] = token.content
    alone = list(tokenizer("a", add_special_tokens=False).input_ids)
    whole = list(tokenizer("a").input_ids)
    at = next((at for at in range(len(whole)) if whole[at : at + len(alone)] == alone), 0)
    before, behind = whole[:at], whole[at + len(alone) :]
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict) and template:
        template = template["default"] if template.get("default") else template[sorted(template)[0]]
    found: dict[str, Value] = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.add_bos_token": bool(before) and before[0] == tokenizer.bos_token_id,
        "tokenizer.ggml.add_eos_token": bool(behind) and behind[-1] == tokenizer.eos_token_id,
    }
    for key, name in _SPECIAL.items():
        if (number := getattr(tokenizer, f"{name}_token_id", None)) is not None:
            found[f"tokenizer.ggml.{key}_token_id"] = int(number)
    return {**found, "tokenizer.chat_template": template} if template else found


def _splitting(tokenizer: Any, found: Values) -> dict[str, Value]:
    """Kind, kinds of tokens, and what is joined first: merges, or scores in the order of the merges."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in state["merges"]]
    pieces = bool(state.get("byte_fallback"))
    tokens, types = found.get("tokenizer.ggml.tokens"), found.get("tokenizer.ggml.token_type")
    known = set(tokenizer.get_vocab().values())
    rule = "default" if pieces else _rule(tokenizer)
    expected: dict[str, Value] = {"tokenizer.ggml.model": "llama" if pieces else "gpt2", "tokenizer.ggml.pre": rule}
    if not isinstance(tokens, list) or not isinstance(types, list):
        return {**expected, "tokenizer.ggml.token_type": [int(TokenType.NORMAL)]}
    kinds = [int(TokenType.NORMAL if number in known else TokenType.UNUSED) for number in range(len(tokens))]
    for number, token in tokenizer.added_tokens_decoder.items():
        kinds[number] = int(TokenType.CONTROL if token.special else TokenType.USER_DEFINED)
    if not pieces:
        expected["tokenizer.ggml.token_type"] = kinds
        return {**expected, "tokenizer.ggml.merges": merges} if merges else expected
    for byte in range(256):
        number = state["vocab"].get(f"<0x{byte:02X}>")
        if number is not None and kinds[number] == int(TokenType.NORMAL):
            kinds[number] = int(TokenType.BYTE)
    if tokenizer.unk_token_id is not None:
        kinds[tokenizer.unk_token_id] = int(TokenType.UNKNOWN)
    _check_scores(found.get("tokenizer.ggml.scores"), merges, state["vocab"], len(tokens))
    prefix = tokenizer.backend_tokenizer.encode("a", add_special_tokens=False).tokens[0].startswith("▁")
    return {**expected, "tokenizer.ggml.token_type": kinds, "tokenizer.ggml.add_space_prefix": prefix}


def _rule(tokenizer: Any) -> str:
    """llama.cpp's name of the rule by which the tokenizer cuts a text, from what it does to texts that tell them
    apart."""
    cut = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str
    digits, *_ = (piece for piece, _ in cut("1234567"))
    folds = [piece for piece, _ in cut("I'LL")] == ["I", "'LL"]
    return _SPLITTING_RULES.get((len(digits), folds), "one that is not known here")


def _stops(tokenizer: Any, stop_ids: Collection[int]) -> dict[str, Value]:
    """Ends of an answer beside the end of text, unless llama.cpp knows them by name."""
    words = {number: tokenizer.convert_ids_to_tokens(number) for number in stop_ids}
    told = sorted(n for n, word in words.items() if word not in ENDS_BY_NAME and n != tokenizer.eos_token_id)
    keys = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
    return dict(zip(keys, told, strict=False))


def _check_scores(scores: Value | None, merges: list[str], vocabulary: Mapping[str, int], size: int) -> None:
    """llama.cpp joins what scores highest: the scores have to fall as the ranks of the merges do."""
    key = "tokenizer.ggml.scores"
    if not isinstance(scores, list) or len(scores) != size:
        raise _wrong(key, scores, f"{size} scores", "the written GGUF")
    made = list(dict.fromkeys(vocabulary[merge.replace(" ", "", 1)] for merge in merges))
    least = min((float(scores[number]) for number in made), default=math.inf)
    for number in sorted(set(range(size)) - set(made)):  # joined by no merge, so what is must come first
        if not float(scores[number]) < least:
            raise _wrong(f"{key}[{number}]", scores[number], f"less than {least}", "the written GGUF")
    for first, second in pairwise(made):
        if not float(scores[first]) > float(scores[second]):
            raise _wrong(f"{key}[{second}]", scores[second], f"less than {scores[first]}", "the written GGUF")


def _check_tensors(reader: TensorReader, config: Any) -> None:
    """What each frequency is divided by: it is no weight of the base, so nothing else looks at it."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope, expected = _rope_settings(config), {}
    if rope["rope_type"] == "longrope":
        expected = {f"rope_factors_{length}.weight": rope[f"{length}_factor"] for length in ("long", "short")}
    elif rope["rope_type"] == "llama3":
        scaled = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))[0].double()
        exponents = torch.arange(len(scaled), dtype=torch.float64) / len(scaled)
        expected = {"rope_freqs.weight": (float(rope["rope_theta"]) ** -exponents / scaled).tolist()}
    found = {tensor.name: tensor.data.tolist() for tensor in reader.tensors if tensor.name.startswith("rope_")}
    for name in sorted({*expected, *found}):
        _compare(name, found.get(name), expected.get(name), "the written GGUF")


def _compare(key: str, found: Value | None, expected: Value | None, file: str) -> None:
    if found == expected and type(found) is type(expected):
        return
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        for at, (one, other) in enumerate(zip(found, expected, strict=True)):
            if not _same(one, other):
                raise _wrong(f"{key}[{at}]", one, other, file)
    elif not _same(found, expected):
        raise _wrong(key, found, expected, file)


def _same(found: object, expected: object) -> bool:
    """Equal, and of one kind; numbers with a point as float32, which is what the file holds."""
    if isinstance(expected, float) and isinstance(found, float):
        return math.isclose(found, expected, rel_tol=1e-5, abs_tol=1e-30)
    if isinstance(expected, bool) or isinstance(found, bool):
        return found is expected
    return bool(found == expected)


def _wrong(key: str, found: object, expected: object, file: str) -> ExportRefused:
    stands = f"{key} is {_short(found)}" if found is not None else f"{key} is missing"
    should = f"should be {_short(expected)}" if expected is not None else "should not be there"
    return ExportRefused(f"{file} does not say what the base's configuration says: {stands} and {should}")


def _short(value: object) -> str:
    text = f"a list of {len(value)}" if isinstance(value, list) else repr(value)
    return text if len(text) <= 70 else f"{text[:45]}… ({len(text)} characters)"
