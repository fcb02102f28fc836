"""What a base can be exported to, told before anybody trains on it: by its configuration and tokenizer alone."""

from __future__ import annotations

from pathlib import Path

from dlm_tui.export.choices import GGUF_TARGETS, TARGETS
from dlm_tui.export.requests import ExportRefused
from dlm_tui.system_errors import first_line


def gguf_obstacle(folder: Path) -> str | None:
    """Why a base in `folder` cannot become GGUF here, None when it can. No weights are read."""
    from transformers import AutoConfig, AutoTokenizer

    from dlm_tui.export.architectures import read_architecture
    from dlm_tui.export.gguf_tokenizer import read_tokenizer

    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        architecture = read_architecture(config.get_text_config(decoder=True).to_dict())
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        read_tokenizer(tokenizer, architecture.vocab)
    except ExportRefused as error:
        return str(error)
    except Exception as error:  # the library raises many types for a broken folder
        return first_line(error)
    return None


def suitability(folder: Path | None, quantised: bool = False) -> tuple[list[str], str]:
    """The targets that work for a base, and a sentence about it."""
    if folder is None:
        return [], "not known: the base is not on this machine yet"
    if quantised:
        return ["peft"], "peft; nothing else from a quantised base"
    obstacle = gguf_obstacle(folder)
    if obstacle is None:
        return list(TARGETS), "every target"
    works = [target for target in TARGETS if target not in GGUF_TARGETS]
    return works, f"{', '.join(works)}; no GGUF: {obstacle}"
