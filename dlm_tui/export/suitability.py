"""What a base can be exported to, told before anybody trains on it: by its configuration and tokenizer alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlm_tui.export.choices import GGUF_TARGETS, TARGETS
from dlm_tui.export.requests import ExportRefused
from dlm_tui.model.foreseen import why_not_opened
from dlm_tui.model.registry import BaseSource, read_json
from dlm_tui.system_errors import first_line

if TYPE_CHECKING:
    from dlm_tui.model import Base

_EVERY = "every target"
_TEXT_ALONE = "every target, a GGUF without what takes images"
_QUANTISED = ("peft",)
"""The targets that hold no weights of the base, which a quantised one no longer has as they were."""


def gguf_obstacle(config: Any, tokenizer: Any) -> str | None:
    """Why a base of this configuration (of its decoder) and tokenizer cannot become GGUF here, None when it can."""
    from dlm_tui.export.architectures import read_architecture
    from dlm_tui.export.gguf_tokenizer import tokenizer_kind

    try:
        rows = read_architecture(config.to_dict()).vocab
        tokenizer_kind(tokenizer)
    except ExportRefused as error:
        return str(error)
    highest = max(tokenizer.get_vocab().values(), default=0)
    if highest >= rows:
        return f"the tokenizer has an id {highest} and the base only {rows} embeddings: they do not belong together"
    return None


def takes_images(base: Base) -> bool:
    """Whether the base's text model is one part of it beside others, whose settings the whole one holds."""
    whole: Any = base.model
    return whole.config is not base.config


def obstacles(base: Base) -> dict[str, str]:
    """The targets that the loaded base cannot be exported to, each with the reason."""
    if base.quantisation is not None:
        reason = f"the base is quantised as {base.quantisation}, and it would hold other weights"
        return dict.fromkeys((target for target in TARGETS if target not in _QUANTISED), reason)
    obstacle = gguf_obstacle(base.config, base.tokenizer)
    return {} if obstacle is None else dict.fromkeys(GGUF_TARGETS, obstacle)


def suitability(source: BaseSource) -> tuple[list[str], str]:
    """The targets that work for a base, and a sentence about it. No weights are read.

    Raises BaseUnavailable for a folder whose configuration cannot be read.
    """
    if source.kind == "embedded" and source.quantize is None:
        return list(TARGETS), _EVERY
    folder = source.path
    if folder is None and source.gguf is not None:
        return [], f"not known yet: {source.gguf.name} is unpacked when it is first used"
    if folder is None:
        return [], "not known: the base is not on this machine yet"
    if source.quantize is not None or "quantization_config" in read_json(folder / "config.json"):
        return list(_QUANTISED), f"{', '.join(_QUANTISED)}; nothing else from a quantised base"
    try:
        if (reason := why_not_opened(folder)) is not None:
            return [], f"none: {reason}"
    except Exception as error:  # the library raises many types for a broken folder
        return [], f"not known: {first_line(error)}"
    obstacle, reach = _gguf_of(folder)
    if obstacle is None:
        said = _TEXT_ALONE if "text_config" in read_json(folder / "config.json") else _EVERY
        return list(TARGETS), said + reach
    works = [target for target in TARGETS if target not in GGUF_TARGETS]
    return works, f"{', '.join(works)}; no GGUF: {obstacle}"


def _gguf_of(folder: Path) -> tuple[str | None, str]:
    """Why the base in `folder` cannot become GGUF here, None when it can; and what to add of one whose window llama.cpp
    does not know."""
    from transformers import AutoConfig, AutoTokenizer

    try:
        whole = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        config = whole.get_text_config(decoder=True)
        obstacle = gguf_obstacle(config, tokenizer)
        return obstacle, "" if obstacle is not None else _short_reach(config)
    except Exception as error:  # the library raises many types for a broken folder
        return first_line(error), ""


def _short_reach(config: Any) -> str:
    from dlm_tui.export.architectures import read_architecture

    reach = read_architecture(config.to_dict()).context_length
    short = reach < int(config.max_position_embeddings)
    return f"; a GGUF reads {reach} tokens at most, as llama.cpp knows no window here" if short else ""
