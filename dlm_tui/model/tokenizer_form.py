"""What a tokenizer does, whatever its files look like: other spacing, an order of keys, a default that one of them
writes out, or a second file that says the same, are no other tokenizer. No torch.

Chat templates are not part of it, as they are none of how text becomes tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from dlm_tui.model.registry import BaseUnavailable, read_json
from dlm_tui.model.remembered import remembered
from dlm_tui.small_files import read_file

_FILE = "tokenizer.json"
_MOST_BYTES = 1 << 30
_OF_A_RUN = ("version", "truncation", "padding")
_SETTINGS = ("tokenizer_class", "bos_token", "eos_token", "add_bos_token", "add_eos_token", "add_prefix_space")


def tokenizer_form_hash(folder: Path) -> str:
    """One hash over vocabulary, model, added tokens, every step in front and behind, and the settings beside them; ""
    for a tokenizer that is kept in another form than the tokenizers library's, of which only its files are known."""
    try:
        steps = remembered("tokenizer-forms", folder / _FILE, _steps_hash, str)
        settings = _settings(folder)
    except (OSError, ValueError, TypeError, LookupError, msgspec.MsgspecError, BaseUnavailable):
        return ""
    return hashlib.sha256(f"{steps}\0".encode() + _bytes(settings)).hexdigest()


def _steps_hash(file: Path) -> str:
    state: dict[str, Any] = msgspec.json.decode(read_file(file, _MOST_BYTES), type=dict[str, Any])
    steps = {name: step for name, step in state.items() if name not in _OF_A_RUN and step is not None}
    # what is left out is off; an id or a score of 0 is a value
    model = {name: value for name, value in steps["model"].items() if value is not False and value not in (None, "")}
    if "merges" in model:
        model["merges"] = [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model["merges"]]
    steps["model"] = model
    steps["added_tokens"] = sorted(steps.get("added_tokens", ()), key=lambda token: token["id"])
    return hashlib.sha256(_bytes(steps)).hexdigest()


def _settings(folder: Path) -> dict[str, object]:
    """What the library takes from beside the tokenizer; it reads a map of special tokens where nothing newer is."""
    settings: Mapping[str, Any] = _read(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in settings:
        settings = {**settings, **_read(folder / "special_tokens_map.json")}
    found = {name: _plain(settings[name]) for name in _SETTINGS if settings.get(name) is not None}
    # one class under three names
    kind = str(found.pop("tokenizer_class", "")).removesuffix("Fast")
    return {**found, "class": "" if kind in ("TokenizersBackend", "PreTrainedTokenizer") else kind}


def _read(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _plain(value: object) -> object:
    """A token as a text, where it is written with how it is cut out."""
    return value.get("content") if isinstance(value, Mapping) else value


def _bytes(value: object) -> bytes:
    return msgspec.json.encode(value, order="deterministic")
