"""The prompts a person keeps beside a document. No torch."""

from __future__ import annotations

from pathlib import Path

import msgspec

from dlm_tui.errors import DlmTuiError

_LIMIT = 16 << 20


def saved_prompts(document: Path) -> list[str]:
    """All prompts of the named sets in `<document>.prompts.json`, each once, in order; [] without that file.

    Raises DlmTuiError when the file is not what the workbench writes.
    """
    path = document.with_name(f"{document.stem}.prompts.json")
    try:
        if path.stat().st_size > _LIMIT:
            raise DlmTuiError(f"{path} is too large to be a file of saved prompts.")
        sets = msgspec.json.decode(path.read_bytes(), type=dict[str, list[str]])
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DlmTuiError(f"{path} cannot be read: {error.strerror}.") from error
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise DlmTuiError(f"{path} does not hold sets of saved prompts: {error}.") from error
    return list(dict.fromkeys(prompt for prompts in sets.values() for prompt in prompts if prompt))
