"""What an error of the hub means: the licence, the token, the spelling, the network or the disk. No torch."""

from __future__ import annotations

import os

from dlm_tui.system_errors import error_line, system_sentence

_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_TRUE = ("1", "on", "yes", "true")
_LATER = (408, 425, 429)
_NOT_UNDERSTOOD = (AttributeError, LookupError, TypeError, ValueError)
"""What the library raises where an answer is no JSON, or not of the form that the hub gives."""


def offline_reason() -> str | None:
    """Which environment variable forbids to ask the hub, as a clause; None where none does. The first that is set
    counts, as for huggingface_hub."""
    name = next((name for name in _OFFLINE if os.environ.get(name)), None)
    if name is None or os.environ[name].lower() not in _TRUE:
        return None
    return f"offline: {name} is set, so that the hub is not asked; unset it to fetch"


def hub_reason(error: Exception, hf_id: str, revision: str | None = None) -> str:
    """Why a repository could not be fetched and what to do about it, as a clause without a full stop."""
    from httpx2 import HTTPError  # what huggingface_hub asks through
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import (
        DisabledRepoError,
        FileMetadataError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, HfHubHTTPError | FileMetadataError):
        error = error.__cause__  # it did answer
    page = f"{constants.ENDPOINT}/{hf_id}"
    has_token = get_token() is not None
    if isinstance(error, GatedRepoError):
        if has_token:
            return f"licence: the account of this machine's token has no access; accept the licence at {page}"
        return f"licence: accept it at {page}, then say who you are with: hf auth login"
    if isinstance(error, RepositoryNotFoundError):
        if has_token:
            return f"spelling: this machine's token sees no repository {hf_id}"
        return f"spelling: there is no public repository {hf_id}; a private one needs a token: hf auth login"
    if isinstance(error, RevisionNotFoundError):
        return f"spelling: {hf_id} has no revision {revision}"
    if isinstance(error, DisabledRepoError):
        return f"disabled: the hub has closed the repository; {page} may say why, and only its owner can open it"
    if isinstance(error, HfHubHTTPError):
        return _status_reason(error.response.status_code, hf_id, constants.ENDPOINT, has_token)
    is_understood = not isinstance(error, (FileMetadataError, *_NOT_UNDERSTOOD)) or isinstance(error, HFValidationError)
    if not is_understood:
        return (
            f"network: what answers at {constants.ENDPOINT} is no hub, but the sign-in page of a network or a proxy,"
            " perhaps; sign in, and check HF_ENDPOINT and HTTPS_PROXY where these are set"
        )
    unreached = (HTTPError, LocalEntryNotFoundError, ConnectionError, TimeoutError)
    if isinstance(error, unreached):
        return offline_reason() or f"network: the hub at {constants.ENDPOINT} cannot be reached"
    return system_sentence(error) or error_line(error)


def _status_reason(status: int, hf_id: str, hub: str, has_token: bool) -> str:
    """What a status means with which the hub says nothing else."""
    if status in (401, 403) and not has_token:
        return f"token: the hub at {hub} does not give {hf_id} to everybody; say who you are with: hf auth login"
    if status == 401:
        return "token: the hub does not accept this machine's token; renew it with: hf auth login"
    if status == 403:
        return f"token: this machine's token may not read {hf_id}; log in with one that may: hf auth login"
    if status == 404:
        return f"spelling: the hub at {hub} has nothing at {hf_id}; check the name, and HF_ENDPOINT where that is set"
    if status >= 500 or status in _LATER:
        return f"network: the hub at {hub} answered with status {status}; try again later"
    return f"network: the hub at {hub} refused with status {status}"
