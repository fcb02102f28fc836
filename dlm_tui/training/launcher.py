"""Variables by which launchers (torchrun, MPI, accelerate, DeepSpeed) tell a process that it is one of several.

A shell inside somebody's cluster job hands them on to everything. The Trainer believes them and waits for ranks that
nobody started, deaf to signals; a training here is one process, so they are not for it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

_LAUNCHER = re.compile(
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|NODE_RANK|NPROC|LOCAL_WORLD_SIZE|MASTER_(ADDR|PORT)|FORK_LAUNCHED"
    r"|(OMPI|PMI|PMIX|MPI|MV2|TORCHELASTIC|ACCELERATE|FSDP|DEEPSPEED|MEGATRON_LM|PARALLELISM_CONFIG|SMDATAPARALLEL"
    r"|SM_HP_MP|SAGEMAKER|CCL|XLA)_\w+|MPI_LOCALRANKID"
)


def launcher_variables() -> list[str]:
    """Names of those that are set, in order."""
    return sorted(name for name in os.environ if _LAUNCHER.fullmatch(name))


@contextlib.contextmanager
def without_launcher() -> Iterator[None]:
    """The block runs as if no launcher had started this process; afterwards the variables are as they were."""
    before = {name: os.environ.pop(name) for name in launcher_variables()}
    try:
        yield
    finally:
        for name in launcher_variables():  # the Trainer leaves some of its own behind
            del os.environ[name]
        os.environ.update(before)
