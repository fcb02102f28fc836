"""Start scripts and the commands a person types next. Every word from outside is quoted for the shell."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

LLAMA_SERVER_PORT, VLLM_PORT = 8080, 8000
"""Where the servers listen unless $PORT says otherwise."""
# a CDPATH of the caller's would lead elsewhere
_HEAD = '#!/usr/bin/env bash\nset -euo pipefail\nCDPATH= cd -- "$(dirname -- "${BASH_SOURCE[0]}")"\n'


SEND_SYSTEM = "send it as the first message (system)"
"""What is done with a document's system prompt where an export has no place for it. The servers that are started here
have none: llama-server dropped its option, vLLM never had one, and a chat template of the export's own would be wrong
for whoever sends a system prompt of theirs."""


def shell(words: Sequence[str | Path]) -> str:
    """A command line that a POSIX shell reads as exactly these words."""
    return " ".join(shlex.quote(str(word)) for word in words)


def llama_server_script(
    model: str, loras: Sequence[tuple[str, float]], context_length: int, *, system: bool = False
) -> str:
    """Starts llama-server with each adapter at its scale; further arguments are passed on. File names, no paths.

    `system`: the document has a system prompt, which a comment tells to send.
    """
    scaled = ",".join(f"{name}:{scale!r}" for name, scale in loras)
    words = ["-m", model, "--lora-scaled", scaled, "--jinja", "--ctx-size", str(context_length), "--host", "127.0.0.1"]
    return f'{_head(system)}exec "${{LLAMA_SERVER:-llama-server}}" {shell(words)} {_tail(LLAMA_SERVER_PORT)}'


def vllm_words(
    base: str,
    revision: str | None,
    adapter: str,
    rank: int,
    context_length: int,
    served: str,
    dtype: str = "auto",
    template: str | None = None,
    *,
    base_served: str,
) -> list[str]:
    """`vllm serve …` for one adapter folder, without it being quoted yet: the adapter is asked for as `served`, the
    base alone as `base_served`. `template` is the file of a chat template to use instead of the one that the base's
    folder has."""
    words = ["vllm", "serve", base]
    if revision:
        words += ["--revision", revision]
    words += ["--host", "127.0.0.1", "--served-model-name", base_served]
    words += ["--dtype", dtype, "--max-model-len", str(context_length)]
    if template is not None:
        words += ["--chat-template", template]
    return [*words, "--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", f"{served}={adapter}"]


def vllm_script(words: Sequence[str], *, system: bool = False) -> str:
    """Starts vLLM from the folder the script lies in, so a relative adapter path works from anywhere; `system` as in
    `llama_server_script`."""
    return f"{_head(system)}exec {shell(words)} {_tail(VLLM_PORT)}"


def _head(system: bool) -> str:
    return _HEAD + (f"# the document's system prompt is not said here: {SEND_SYSTEM}\n" if system else "")


def _tail(port: int) -> str:
    return f'--port "${{PORT:-{port}}}" "$@"\n'
