"""Copying with whatever clipboard tool is at hand, beside the terminal's own way (OSC 52, which never answers)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil

_SECONDS = 2.0
_TOOLS: tuple[tuple[str, tuple[str, ...], str | None], ...] = (
    ("pbcopy", (), None),
    ("wl-copy", (), "WAYLAND_DISPLAY"),
    ("xclip", ("-selection", "clipboard"), "DISPLAY"),
    ("xsel", ("--clipboard", "--input"), "DISPLAY"),
    ("tmux", ("load-buffer", "-w", "-"), "TMUX"),
)


async def copy_with_tool(text: str) -> str | None:
    """The name of the tool that took the text, or None when there is none here."""
    for name, arguments, needs in _TOOLS:
        if (needs and not os.environ.get(needs)) or not shutil.which(name):
            continue
        with contextlib.suppress(OSError, TimeoutError):
            process = await asyncio.create_subprocess_exec(
                name,
                *arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
            assert process.stdin is not None
            process.stdin.write(text.encode())
            process.stdin.close()
            try:
                if await asyncio.wait_for(process.wait(), _SECONDS) == 0:
                    return name
            finally:
                if process.returncode is None:  # it hangs, and another one is tried
                    process.kill()
                    await process.wait()
    return None
