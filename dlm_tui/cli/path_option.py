"""Options that are paths: a shell leaves the `~` of `--out=~/folder` to the program."""

from __future__ import annotations

import argparse

from dlm_tui.errors import UsageError
from dlm_tui.input import with_home


def given_path(text: str) -> str:
    """The `type` of such an option."""
    if not text:  # a variable of a shell that is not set; the folder that one is in has a name of its own, `.`
        raise argparse.ArgumentTypeError("the path is empty")
    try:
        return str(with_home(text))
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
