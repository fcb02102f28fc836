"""Fetching an adapter from the hub: its configuration and its safetensors, nothing else."""

from __future__ import annotations

import re
from collections.abc import Generator
from pathlib import Path

from dlm_tui.errors import UsageError
from dlm_tui.model.adapter_import import CONFIG, WEIGHTS
from dlm_tui.model.adapters import AdapterError
from dlm_tui.model.hub_errors import hub_reason
from dlm_tui.progress import Progress, in_thread

_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


def fetch_adapter(repository: str) -> Generator[Progress, None, Path]:
    """Download `org/name` into the hub's cache (`HF_ENDPOINT` and `HF_HOME` are honoured); returns the folder.

    Raises UsageError for a malformed name, AdapterError when the hub does not give the two files.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise UsageError(f"{repository!r} is not a repository: write hf:org/name")
    return (yield from in_thread(lambda: _download(repository), lambda: Progress("download", text=repository)))


def _download(repository: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    try:
        config = Path(hf_hub_download(repository, CONFIG))
        hf_hub_download(repository, WEIGHTS, revision=config.parent.name)
    except EntryNotFoundError as error:
        if isinstance(error, LocalEntryNotFoundError):  # the hub did not answer
            raise AdapterError(
                f"the adapter {repository} cannot be fetched; {hub_reason(error, repository)}"
            ) from error
        raise AdapterError(f"{repository} has no {CONFIG} with {WEIGHTS}; pickled adapters are never read") from error
    except Exception as error:  # network, authorisation and disk errors come as many types
        raise _unfetched(repository, error) from error
    return config.parent


def _unfetched(repository: str, error: Exception) -> AdapterError:
    return AdapterError(f"the adapter {repository} cannot be fetched; {hub_reason(error, repository)}")
