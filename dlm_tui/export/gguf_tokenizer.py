"""The tokenizer as GGUF metadata: tokens, types, merges, special ids, chat template."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from dlm_tui.export.requests import ExportRefused
from dlm_tui.model.chat import chosen_template

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6

ENDS_BY_NAME = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>")
"""Tokens at which llama.cpp stops by their names alone."""
_MORE_ENDS = ("eot", "eom")
"""The keys for ids at which it stops beside the end of text."""

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _REST: "llama-bpe",
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _REST: "qwen2",
}


@dataclass(frozen=True)
class GgufTokenizer:
    """All that llama.cpp needs. `scores` only for the sentencepiece kind, `merges` only for byte-level BPE."""

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    special: dict[str, int] = field(default_factory=dict)
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool | None = None
    chat_template: str | None = None


def _pre_tokenizer(node: dict[str, Any] | None) -> str | None:
    """llama.cpp's name of a byte-level splitting rule, or None when it is none of those that were compared."""
    if node is None:
        return None
    parts = node["pretokenizers"] if node["type"] == "Sequence" else [node]
    last = parts[-1]
    if last["type"] != "ByteLevel" or last.get("add_prefix_space"):
        return None
    match [part["type"] for part in parts[:-1]]:
        case []:
            return "gpt-2" if last.get("use_regex", True) else None
        case ["Digits"]:
            plain = parts[0].get("individual_digits") and last.get("use_regex", True)
            return "smollm" if plain else None
        case ["Split"]:
            pattern = parts[0]["pattern"].get("Regex")
            isolated = parts[0].get("behavior") == "Isolated" and not parts[0].get("invert")
            return _SPLITS.get(pattern) if isolated and not last.get("use_regex", True) else None
    return None


@dataclass(frozen=True)
class TokenizerKind:
    """How a tokenizer splits text: `pre` is llama.cpp's name of it, "default" for the sentencepiece kind, whose `marks`
    say where blanks become `▁`.
    """

    pre: str
    marks: str
    is_sentencepiece: bool


def tokenizer_kind(tokenizer: Any) -> TokenizerKind:
    """The kind of a fast transformers tokenizer, without a look at its vocabulary.

    Raises ExportRefused when it is one whose splitting llama.cpp is not known to reproduce.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ExportRefused("the base's tokenizer is no fast tokenizer, so it cannot be written into a GGUF")
    model = backend.model
    if type(model).__name__ != "BPE":
        kind = type(model).__name__
        raise ExportRefused(f"a {kind} tokenizer cannot be written as GGUF here (only BPE tokenizers can)")
    normalizer, splitter = _state(backend.normalizer), _state(backend.pre_tokenizer)
    marks = json.dumps([normalizer, splitter], ensure_ascii=False)
    if model.byte_fallback and "▁" in marks:  # as converted from Llama 2 and Mistral models
        if splitter is not None and splitter.get("prepend_scheme") in ("first", "always"):
            raise ExportRefused(
                "the base's tokenizer puts a blank before a text only where there is none, and llama.cpp always, so a "
                "GGUF would answer differently; the targets peft, vllm and merged work"
            )
        return TokenizerKind("default", marks, is_sentencepiece=True)
    # the normaliser NFC of the Qwen tokenizers is one that llama.cpp leaves out: only text in other forms differs
    pre = _pre_tokenizer(splitter)
    merges_skipped = bool(model.ignore_merges) and pre != "llama-bpe"
    if pre is None or merges_skipped or normalizer not in (None, {"type": "NFC"}):
        raise ExportRefused(
            "the base's tokenizer splits text in a way that llama.cpp is not known to reproduce, so a GGUF would "
            "answer differently; the targets peft, vllm and merged work"
        )
    return TokenizerKind(pre, marks, is_sentencepiece=False)


def _state(part: Any) -> dict[str, Any] | None:
    """A normaliser or splitter as tokenizer.json has it. Raises ExportRefused for one that is a program."""
    try:
        found: dict[str, Any] | None = None if part is None else json.loads(part.__getstate__())
    except Exception as error:  # the library has no type of its own for it
        raise ExportRefused("a part of the base's tokenizer is a program, which no GGUF can hold") from error
    return found


def _merge_text(merge: Any) -> str:
    return merge if isinstance(merge, str) else " ".join(merge)


def _special_ids(tokenizer: Any) -> dict[str, int]:
    found = {}
    for name in ("bos", "eos", "pad", "unk"):
        number = getattr(tokenizer, f"{name}_token_id", None)
        if number is not None:
            found[name] = int(number)
    return found


def further_stops(tokenizer: Any, stop_ids: Collection[int]) -> dict[str, int]:
    """Of the ids at which an answer ends, those that llama.cpp has to be told beside the end of text, by their keys.

    Raises ExportRefused for more than it can hold.
    """
    known = {tokenizer.eos_token_id, *(tokenizer.convert_tokens_to_ids(name) for name in ENDS_BY_NAME)}
    further = sorted(set(stop_ids) - known)
    if len(further) > len(_MORE_ENDS):
        names = ", ".join(map(str, tokenizer.convert_ids_to_tokens(further)))
        raise ExportRefused(
            f"the base ends its answers with {names} beside its end of text, and a GGUF holds {len(_MORE_ENDS)}"
            " of those at most; the targets peft, vllm and merged work"
        )
    return dict(zip(_MORE_ENDS, further, strict=False))


def _chat_template(tokenizer: Any) -> str | None:
    """The one that the workbench uses."""
    template = chosen_template(getattr(tokenizer, "chat_template", None))
    return template if isinstance(template, str) and template else None


def _table(state: dict[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    """Token texts and types by id; ids without a token become unused padding."""
    tokens = [f"[PAD{number}]" for number in range(vocab_size)]
    types = [_UNUSED] * vocab_size
    added = {entry["id"]: entry for entry in state.get("added_tokens") or []}
    highest = max([*state["model"]["vocab"].values(), *added], default=0)
    if highest >= vocab_size:
        raise ExportRefused(
            f"the tokenizer has an id {highest} and the base only {vocab_size} embeddings: they do not belong together"
        )
    for text, number in state["model"]["vocab"].items():
        tokens[number], types[number] = text, _NORMAL
    for number, entry in added.items():
        tokens[number] = entry["content"]
        types[number] = _CONTROL if entry.get("special") else _USER_DEFINED
    return tokens, types


def read_tokenizer(tokenizer: Any, vocab_size: int, stop_ids: Collection[int] = ()) -> GgufTokenizer:
    """The GGUF form of a fast transformers tokenizer for a base with `vocab_size` embedding rows, whose answers end
    with one of `stop_ids`.

    Raises ExportRefused when it is of a kind whose splitting llama.cpp is not known to reproduce.
    """
    kind = tokenizer_kind(tokenizer)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens, types = _table(state, vocab_size)
    merges = [_merge_text(merge) for merge in state["model"]["merges"]]
    special = _special_ids(tokenizer) | further_stops(tokenizer, stop_ids)
    probe = list(tokenizer("a").input_ids)
    common: dict[str, Any] = {
        "special": special,
        "add_bos": bool(probe) and special.get("bos") == probe[0],
        "add_eos": len(probe) > 1 and special.get("eos") == probe[-1],
        "chat_template": _chat_template(tokenizer),
    }
    if kind.is_sentencepiece:
        return _sentencepiece(kind, tokens, types, merges, common)
    return GgufTokenizer(model="gpt2", pre=kind.pre, tokens=tokens, types=types, merges=merges, **common)


def _sentencepiece(
    kind: TokenizerKind, tokens: list[str], types: list[int], merges: list[str], common: dict[str, Any]
) -> GgufTokenizer:
    """llama.cpp merges by the score of the result, so the score of a token is minus the rank of the merge making it."""
    rank = {merge.replace(" ", "", 1): order for order, merge in reversed(list(enumerate(merges)))}
    scores = [-float(rank[token]) if token in rank else -1e6 for token in tokens]
    for number, token in enumerate(tokens):
        if types[number] == _NORMAL and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            types[number] = _BYTE
    unknown = common["special"].get("unk")
    if unknown is not None:
        types[unknown] = _UNKNOWN
    marks = kind.marks
    return GgufTokenizer(
        model="llama",
        pre=kind.pre,
        tokens=tokens,
        types=types,
        scores=scores,
        add_space_prefix='"Prepend"' in marks or '"prepend_scheme": "first"' in marks or "always" in marks,
        **common,
    )
