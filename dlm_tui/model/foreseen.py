"""Which forward a base will get, told by its configuration before anything of it is loaded. No weights are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from dlm_tui.model.architectures.families import why_not_fused
from dlm_tui.model.config_check import both_ways
from dlm_tui.model.registry import BaseSource, read_json
from dlm_tui.system_errors import first_line

FUSED, PLAIN = "fused", "transformers"


def foreseen_forward(source: BaseSource) -> tuple[str | None, str]:
    """`FUSED` or `PLAIN`, and a sentence; None for a base that is not on this machine or not unpacked yet.

    A fused forward is used only after its numbers agreed with the library's, which loading the base shows. Raises
    BaseUnavailable for a folder whose configuration cannot be read.
    """
    folder = source.path
    if folder is None:
        return None, "not known before the base is on this machine and unpacked"
    config = read_json(folder / "config.json")
    if source.quantize is not None or "quantization_config" in config:
        return PLAIN, f"{PLAIN}' own: its weights are quantised"
    try:
        if (reason := why_not_opened(folder)) is not None:
            return None, f"none: {reason}"
        obstacle = _obstacle(str(folder))
    except Exception as error:  # the library raises many types for a broken folder
        return None, f"not known: {first_line(error)}"
    if obstacle is not None:
        return PLAIN, f"{PLAIN}' own: {obstacle}"
    return FUSED, f"{FUSED}, where its numbers agree with {PLAIN}' when it is loaded"


def why_not_opened(folder: Path) -> str | None:
    """Why the configuration in `folder` is of no language model, None where it is of one. Raises as the library does
    for a configuration that cannot be read."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if reason := both_ways(read_json(folder / "config.json")):
        return f"it {reason}"
    config: Any = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    if config.model_type in cast("Any", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        return None
    return f"transformers opens {config.model_type} as something else than a language model, so it cannot be used here"


def _obstacle(folder: str) -> str | None:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    family = cast("Any", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES).get(config.model_type, config.model_type)
    return why_not_fused(str(family), config.get_text_config(decoder=True))
