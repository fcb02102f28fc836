"""Names of a room that load on first use, so that naming the room costs nothing."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any


def load(package: str, homes: Mapping[str, str], name: str) -> Any:
    """The value of `name`, from the module of `package` that `homes` gives for it; kept there for the next time.

    For the module-level `__getattr__` of a package (PEP 562). Raises AttributeError for other names.
    """
    home = homes.get(name)
    if home is None:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    value = getattr(import_module(f"{package}.{home}"), name)
    setattr(sys.modules[package], name, value)
    return value
