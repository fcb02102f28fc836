"""What was typed into a dialog and could not be written into the document."""

from __future__ import annotations

from typing import Generic, TypeVar

from dlm_tui.app.controllers.context import Context
from dlm_tui.document.document import read_document_bytes
from dlm_tui.document.replacing import refuse_unwritable
from dlm_tui.errors import DlmTuiError
from dlm_tui.system_errors import sentence_of

Item = TypeVar("Item")


class Drafts(Generic[Item]):
    """Keeps each, so that the dialog has it again when it is opened for the same thing."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._kept: dict[str, Item] = {}

    def keep(self, what: str, item: Item, error: Exception) -> None:
        """Keep what is typed for `what`, and say why it was not written."""
        self._kept[what] = item
        text = f"{sentence(error).rstrip('.')}. What you typed is kept: the dialog has it again."
        self._context.ui.say(text, error=True, title="Nothing was written")

    def take(self, what: str) -> Item | None:
        """What was kept for `what`, which is the dialog's from now on."""
        return self._kept.pop(what, None)


def bytes_to_change(context: Context) -> bytes | None:
    """The document as it is on disk; None where it cannot be read or written, which is said before anybody types."""
    path = context.setup.path
    try:
        refuse_unwritable(path, path.resolve())
        return read_document_bytes(path)
    except (DlmTuiError, OSError) as error:
        context.ui.say(sentence(error), error=True, title="The document cannot be changed")
        return None


def sentence(error: Exception) -> str:
    """The error in one sentence with a capital."""
    text = sentence_of(error)
    return f"{text[:1].upper()}{text[1:]}"
