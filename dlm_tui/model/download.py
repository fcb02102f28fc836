"""Fetching a base from the hub: only configuration, tokenizer and safetensors, with progress in bytes."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import msgspec

from dlm_tui.model.hub_errors import hub_reason, offline_reason
from dlm_tui.model.registry import BaseSource, BaseUnavailable, cache_root, find_cached, missing_message
from dlm_tui.progress import Progress, in_thread

_SUFFIXES = (".safetensors", ".json", ".txt", ".model", ".jinja")


def fetch(source: BaseSource) -> Generator[Progress, None, BaseSource]:
    """Download a hub base into the shared cache and return its source with `path` and the full `revision`.

    Raises BaseUnavailable with the command that fetches it, and with which of licence, token, spelling and network it
    is that stands in the way; also where the environment says that the hub is not to be asked.
    """
    if source.kind != "hub":
        raise BaseUnavailable(missing_message(source))
    if (offline := offline_reason()) is not None:
        raise BaseUnavailable(f"{missing_message(source)}; {offline}")
    try:
        revision, files = yield from in_thread(lambda: _listing(source), lambda: Progress("download"))
        total = sum(files.values())
        folder = cache_root() / f"models--{source.hf_id.replace('/', '--')}" / "blobs"
        yield from in_thread(
            lambda: _download(source.hf_id, revision, list(files)),
            lambda: Progress("download", min(_stored(folder), total), total),
            interval=0.2,
        )
    except BaseUnavailable:
        raise
    except Exception as error:  # network, authorisation and disk errors come as many types
        reason = hub_reason(error, source.hf_id, source.revision)
        raise BaseUnavailable(f"{missing_message(source)}; {reason}") from error
    found = find_cached(source.hf_id, revision)
    if found is None:
        raise BaseUnavailable(f"{source.hf_id} has no safetensors weights")
    return msgspec.structs.replace(source, path=found, revision=revision)


def _listing(source: BaseSource) -> tuple[str, dict[str, int]]:
    """The full revision and the sizes in bytes of the files that are needed."""
    from huggingface_hub import HfApi

    api: Any = HfApi()
    revision = source.revision
    if revision and len(revision) < 40:
        commits = (str(commit.commit_id) for commit in api.list_repo_commits(source.hf_id))
        revision = next((commit for commit in commits if commit.startswith(revision)), None)
    info = api.model_info(source.hf_id, revision=revision, files_metadata=True)
    files = {
        str(file.rfilename): int(file.size or 0)
        for file in info.siblings
        if file.rfilename.endswith(_SUFFIXES) and "/" not in file.rfilename
    }
    if not any(name.endswith(".safetensors") for name in files):
        raise BaseUnavailable(f"{source.hf_id} has no safetensors weights; pickled ones are never read")
    return str(info.sha), files


def _download(hf_id: str, revision: str, names: list[str]) -> None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    for name in names:
        hf_hub_download(hf_id, name, revision=revision)


def _stored(folder: Path) -> int:
    try:
        return sum(file.stat().st_size for file in folder.iterdir())
    except OSError:
        return 0
