"""What an error of the hub means: the licence, the token, the spelling, the network or the disk. No torch."""

from __future__ import annotations

from dlm_tui.system_errors import error_line, system_sentence


def hub_reason(error: Exception, hf_id: str, revision: str | None = None) -> str:
    """Why a repository could not be fetched and what to do about it, as a clause without a full stop."""
    from httpx2 import HTTPError  # what huggingface_hub asks through
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

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
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            return "token: the hub does not accept this machine's token; renew it with: hf auth login"
        return f"network: the hub at {constants.ENDPOINT} answered with status {status}; try again later"
    unreached = (HTTPError, LocalEntryNotFoundError, ConnectionError, TimeoutError)
    if isinstance(error, unreached):
        return f"network: the hub at {constants.ENDPOINT} cannot be reached"
    return system_sentence(error) or error_line(error)
