"""What a process that runs the model is started with: environment variables, libraries that say less. No torch."""

from __future__ import annotations

import logging

CHILD_ENVIRONMENT = {
    # torch's threads otherwise spin while they wait for each other; beside a training job that made a step of 50 ms
    # take 500. Has to be set before the process starts.
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
}


def quiet_libraries() -> None:
    """PEFT loads bitsandbytes where it is installed, which then advises a package that nothing here would use."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
