"""Where the bundled files lie: beside the package in a wheel, at the top of the tree in a checkout."""

from __future__ import annotations

from pathlib import Path

from dlm_tui.errors import DlmTuiError


def asset(name: str) -> Path:
    """The path of a bundled folder or file, such as `base` or `demo/harbour.dlm`.

    Raises DlmTuiError when it is in neither place.
    """
    package = Path(__file__).resolve().parent
    for root in (package / "_assets", package.parent / "assets"):
        if (root / name).exists():
            return root / name
    raise DlmTuiError(f"the bundled file {name!r} is missing from this installation")
