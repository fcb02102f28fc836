"""What a process that runs the model is started with: environment variables, libraries that say less. No torch."""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Iterator

CHILD_ENVIRONMENT = {
    # torch's threads otherwise spin while they wait for each other; beside a training job that made a step of 50 ms
    # take 500. Has to be set before the process starts.
    "OMP_WAIT_POLICY": "PASSIVE",
    # oneDNN and torch's layer above it each keep what they compile for a shape, 1024 of them: with every prompt of a
    # length of its own that grew to a gigabyte. Making one anew takes less than a product with it.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32",
    "LRU_CACHE_CAPACITY": "32",
    "TOKENIZERS_PARALLELISM": "false",
}


def quiet_libraries() -> None:
    """PEFT loads bitsandbytes and torchao where they are installed, which then advise packages that nothing here would
    use, and name their files for other devices that they could not load."""
    for name in ("bitsandbytes", "torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextlib.contextmanager
def unreported() -> Iterator[None]:
    """Without the tables that transformers and accelerate log of a model that they load, and without bars: what is
    wrong with it is said here, in a sentence."""
    from transformers.utils import logging as library_logging

    library_logging.disable_progress_bar()
    noisy = [logging.getLogger(name) for name in ("transformers", "accelerate")]
    before = [logger.level for logger in noisy]
    for logger in noisy:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(noisy, before, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without looking for garbage, for what makes millions of objects that stay or go by themselves."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def collect_rarely() -> None:
    """Look for garbage after 50,000 new objects instead of 700.

    Libraries, vocabularies and models are millions of objects that stay: looking through them was a fifth of the
    imports of torch and transformers, and two fifths of reading a vocabulary of 262k entries.
    """
    gc.set_threshold(50_000, 20, 20)
