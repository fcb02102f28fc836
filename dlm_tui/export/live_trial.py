"""The server of a live export, started by its own command and asked what the gate decides, before it is published."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from dlm_tui.child import python_words
from dlm_tui.export.parity import PATIENCE_SECONDS, child_lines
from dlm_tui.export.requests import ExportRefused, Session
from dlm_tui.files import temporary_folder
from dlm_tui.model.chat import ChatTemplateError
from dlm_tui.platform import OWN_GROUP
from dlm_tui.progress import Progress

# The server ends when nobody holds the other end of its standard input any more, however this process ends.
_START = """
import os, runpy, sys, threading
def watch():
    while os.read(0, 4096):
        pass
    os._exit(1)
threading.Thread(target=watch, daemon=True).start()
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
_NOT_ITS_OWN = ("PYTHONPATH", "PYTHONHOME", "DLM_TUI_API_KEY")
_ANSWERED = 2
"""Tokens of the answer that is asked for: it is its prompt that is looked at."""
_EXACT = 1e-3
"""How far the gate of the folder may be from the workbench's over the same embedding, which is sent as text."""
_EMBEDDING = {"f32": 1e-2, "f16": 3e-2, "bf16": 0.1, "q8_0": 0.1}
_EMBEDDING_OTHERS = 0.5
"""Largest accepted ‖theirs - ours‖ / ‖ours‖ of a prompt's embedding in the rounded base."""


def missing_package(requirements: str) -> str | None:
    """The first package of a requirements file that is not installed here; nothing is imported."""
    names = (line.partition(">=")[0].strip() for line in requirements.splitlines())
    return next((name for name in names if name and importlib.util.find_spec(name) is None), None)


def try_server(
    folder: Path,
    script: str,
    session: Session,
    adapters: Sequence[str],
    prompts: Sequence[str],
    dtype: str,
    patience: float = PATIENCE_SECONDS,
) -> Generator[Progress, None, dict[str, Any]]:
    """Start `script` on a free port of the loopback and ask it about the `prompts`; it is gone when this ends.

    `dtype` is what separates its base from the workbench's. Returns how many prompts there were, the largest difference
    of a weight from the workbench's, and the largest error of an embedding as a share of it. Raises ExportRefused where
    the server does not start or breaks off, where its gate decides otherwise, or where it makes another prompt of a
    question.
    """
    from dlm_tui.gate import embed_prompts

    base, gate = session.base, session.gate
    assert gate is not None
    ours = yield from embed_prompts(session.model.backbone, base, prompts, hidden_size=base.hidden_size)
    furthest, largest = 0.0, 0.0
    with _started(folder, script) as (child, log):
        address = yield from _address(child, log, script, patience)
        for done, (prompt, mine) in enumerate(zip(prompts, ours, strict=True)):
            (item,) = _asked(address, "/v1/route", {"input": prompt}, patience)["data"]
            (told,) = _asked(address, "/v1/embeddings", {"input": prompt, "model": "base"}, patience)["data"]
            vector = torch.tensor(told["embedding"], dtype=torch.float32)
            off = float((vector - mine).norm() / mine.norm()) if vector.shape == mine.shape else float("inf")
            if not off <= (limit := _EMBEDDING.get(dtype, _EMBEDDING_OTHERS)):
                raise _other(script, f"embeds {prompt!r} {off:.2g} of its size away, and {dtype} explains {limit:g}")
            meant = dict(zip(gate.names, gate.weights(vector).tolist(), strict=True))
            exact = dict(zip(gate.names, gate.weights(mine).tolist(), strict=True))
            found = item["weights"]
            if item["mode"] != gate.mode or set(found) != {name for name in gate.names if name in adapters}:
                raise _other(script, f"decides {item['mode']} over {', '.join(found)}")
            if not max(abs(found[name] - meant[name]) for name in found) <= _EXACT:
                raise _other(script, f"gives {prompt!r} the weights {_shown(found)}, and they are {_shown(meant)}")
            furthest, largest = max(furthest, off), max(largest, *(abs(found[name] - exact[name]) for name in found))
            yield Progress("server", done + 1, len(prompts))
        _check_chat(address, script, session, min(prompts, key=len), patience)
    return {"prompts": len(prompts), "max_weight_diff": largest, "embedding_error": furthest}


def _check_chat(address: str, script: str, session: Session, question: str, patience: float) -> None:
    """Raises ExportRefused where a question becomes a prompt of another length than in the workbench."""
    try:
        ids = session.base.chat(question, session.document.system_prompt)
    except ChatTemplateError:
        return  # nobody can be asked by it
    if len(ids) + _ANSWERED > session.base.context_length:
        return
    asked = {"model": "gated", "messages": [{"role": "user", "content": question}], "max_tokens": _ANSWERED}
    found = _asked(address, "/v1/chat/completions", asked, patience)["usage"]["prompt_tokens"]
    if found != len(ids):
        raise _other(script, f"makes {found} tokens of {question!r}, and they are {len(ids)}")


@contextmanager
def _started(folder: Path, script: str) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """The server as a child, and what it says on stderr."""
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_ITS_OWN}
    # what it would compile lies in the folder that is about to be published
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    words = [
        *python_words("-c", _START),
        str((folder / script).absolute()),
        "--port",
        "0",
        "--json",
        "--rows",
        "1",
        "--threads",
        "1",
    ]
    with (
        tempfile.TemporaryFile() as log,
        temporary_folder("start") as here,  # whoever starts it may be anywhere
        subprocess.Popen(
            words,
            cwd=here,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            **OWN_GROUP,
        ) as child,
    ):
        try:
            yield child, log
        finally:
            child.kill()


def _address(
    child: subprocess.Popen[bytes], log: IO[bytes], script: str, patience: float
) -> Generator[Progress, None, str]:
    try:
        for line in child_lines(child, patience):
            if line is not None:
                return str(line["address"])
            yield Progress("server", 0, 1)
    except (ExportRefused, ValueError, KeyError, TypeError) as error:
        log.seek(0)
        said = log.read().decode(errors="replace").strip().splitlines()
        raise _other(script, f"does not start: {said[-1].strip() if said else error}") from error
    raise AssertionError("the lines of a child end with an error")


def _asked(address: str, path: str, body: dict[str, Any], patience: float) -> dict[str, Any]:
    request = urllib.request.Request(address + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the loopback is behind no proxy
    try:
        with opener.open(request, timeout=patience) as answer:
            found: dict[str, Any] = json.loads(answer.read())
            return found
    except urllib.error.HTTPError as error:
        said = error.read(400).decode(errors="replace")
        raise ExportRefused(f"the export's server answers {path} with {error.code}: {said}") from error
    except (OSError, ValueError) as error:
        raise ExportRefused(f"the export's server broke off at {path}: {error}") from error


def _other(script: str, what: str) -> ExportRefused:
    return ExportRefused(f"the export's server does not do as the workbench does: {script} {what}")


def _shown(weights: dict[str, float]) -> str:
    return ", ".join(f"{name} {weight:.4f}" for name, weight in weights.items())
