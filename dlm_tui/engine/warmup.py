"""The first use before the first use: what is slow once is done while the document is being opened."""

from __future__ import annotations

from collections.abc import Generator

import torch

from dlm_tui.model import Sampling, threads_for
from dlm_tui.model.generation import generate
from dlm_tui.progress import Progress, run_to_end
from dlm_tui.session import Session

_TEXT = "Where is the ladder?"


def warm_up(session: Session, *, choose_threads: bool) -> Generator[Progress, None, None]:
    """Choose the thread count where that is asked for, then route a prompt and decode a token under every adapter.

    Nothing of it stays in the session's memory of prompts and answers. Raises whatever the base raises.
    """
    model, router = session.model, session.router

    def step(done: int, text: str) -> Progress:
        return Progress("warm-up", done, 3, text)

    yield step(0, "choosing the number of threads")
    if choose_threads:
        torch.set_num_threads(threads_for(model.backbone))
    yield step(1, "routing a first prompt")
    try:
        run_to_end(router.route(_TEXT, explain=True))
        yield step(2, "decoding a first token")
        rows = [{}, dict.fromkeys(model.names, 1.0 / len(model.names))] if model.names else [{}]
        # two tokens, as the first one comes from the prefill
        run_to_end(generate(model, session.base.chat(_TEXT), rows, Sampling(max_tokens=2), stop_ids=()))
    finally:
        router.reset()
        model.prefilled = None
    yield step(3, "the engine is warm")
