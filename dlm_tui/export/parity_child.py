"""The child that loads a finished export into a foreign runtime: `python -m dlm_tui.export.parity_child`.

One JSON line in (the job), one JSON line out per answer; vectors as base64 of little-endian float32. Its own process,
so that a crash or a hang of the runtime costs nothing but the verification. It ends when its stdin closes.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from dlm_tui.export.runtimes import LlamaCpp, Runtime, as_loaded
from dlm_tui.system_errors import error_line, system_sentence

_BEAT_SECONDS = 5.0
"""How often a reference that reads its weights as it goes says that it is at work."""


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def _load(job: dict[str, Any], beat: Callable[[], None]) -> Runtime:
    if job["runtime"] == "llama.cpp":
        loras = [(str(path), float(scale)) for path, scale in job["loras"]]
        return LlamaCpp(
            job["model"], loras, int(job["vocab"]), int(job["context"]),
            embeds=bool(job["embed"]), as_read=bool(job["as_read"]),
        )  # fmt: skip
    if job["runtime"] == "stored gguf":
        from dlm_tui.export.reference_runtimes import stored_in_gguf

        loras = [(str(path), float(scale)) for path, scale in job["loras"]]
        return stored_in_gguf(job["config"], job["model"], loras, beat)
    if job["runtime"] == "base and pairs":
        from dlm_tui.export.reference_runtimes import base_and_pairs

        return base_and_pairs(job["model"], job["adapter"], job["load_dtype"], beat)
    return as_loaded(job["model"], job.get("adapter"), job["load_dtype"], job["quantize"])


def _answer(job: dict[str, Any], out: IO[str]) -> None:
    def say(**line: Any) -> None:
        out.write(json.dumps(line) + "\n")
        out.flush()

    heard = time.monotonic()

    def beat() -> None:
        nonlocal heard
        if time.monotonic() - heard > _BEAT_SECONDS:
            heard = time.monotonic()
            say(working=True)

    runtime = _load(job, beat)
    say(loaded=runtime.label)
    if isinstance(runtime, LlamaCpp):  # the others are compared by what they say next
        for ids in job["embed"]:
            say(embedding=base64.b64encode(runtime.embedding(ids).astype("<f4").tobytes()).decode())
    for vector in runtime.logprobs(job["prompts"]):
        say(logprobs=base64.b64encode(np.ascontiguousarray(vector.astype("<f4")).tobytes()).decode())
    for answer in runtime.greedy(job["greedy"], int(job["tokens"])):
        say(greedy=answer)
    for ids, said in job["follow"]:
        say(followed=runtime.followed(ids, said))
    for text in job["texts"]:
        say(tokens=runtime.tokenize(text))
    say(done=True, tokens_per_second=runtime.tokens_per_second)


def main() -> None:
    """Answer one job and exit."""
    line = sys.stdin.buffer.readline()
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    # libraries print what they like: only the duplicate of fd 1 carries answers
    protocol = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        _answer(json.loads(line), protocol)
    except BaseException as error:  # whatever went wrong becomes one line for the parent
        protocol.write(json.dumps({"failed": system_sentence(error) or error_line(error)}) + "\n")
        protocol.flush()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main()
