"""Options that belong to some of the actions of a command: given with another action they are refused, not ignored."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial

from dlm_tui.errors import UsageError

_KEY = "refuse_idle_options"


def belong(
    parser: argparse.ArgumentParser,
    action: Callable[[argparse.Namespace], str],
    owners: Mapping[str, str],
    words: Callable[[str], str] = str,
) -> None:
    """Let each option of the parser, by its `dest`, belong to the actions that `owners` names, a blank between them.

    `action` is what was asked for, `words` how a message names one. While the command line is read the options have no
    default, so that one which was given is told from one that was not; `refuse_idle_options` puts the defaults in.
    """
    flags = {
        one.dest: one.option_strings[0] if one.option_strings else one.metavar or one.dest for one in parser._actions
    }
    defaults = {dest: parser.get_default(dest) for dest in owners}
    parser.set_defaults(**dict.fromkeys(owners), **{_KEY: partial(_refuse, action, owners, flags, defaults, words)})


def refuse_idle_options(args: argparse.Namespace) -> None:
    """Raises UsageError for an option that would do nothing."""
    if getattr(args, "csv", False) and args.json:
        raise UsageError("--csv and --json exclude each other")
    check = getattr(args, _KEY, None)
    if check is not None:
        check(args)


def _refuse(
    action: Callable[[argparse.Namespace], str],
    owners: Mapping[str, str],
    flags: Mapping[str, object],
    defaults: Mapping[str, object],
    words: Callable[[str], str],
    args: argparse.Namespace,
) -> None:
    asked = action(args)
    for dest, owning in owners.items():
        if getattr(args, dest) is None:
            setattr(args, dest, defaults[dest])
        elif asked not in owning.split():
            *others, last = [words(one) for one in owning.split()]
            belongs = f"{', '.join(others)} and {last}" if others else last
            raise UsageError(f"{flags[dest]} belongs to {belongs}, not to {words(asked)}")
