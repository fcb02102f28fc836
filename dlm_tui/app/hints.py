"""What the screen offers at its edges, all of it read from the key table: words on the panes, footer, status line."""

from __future__ import annotations

from collections.abc import Mapping

from dlm_tui.app.keys import BY_ID, KEYS, Key, display, is_text, keys_of
from dlm_widgets.border_button import BorderButton
from dlm_widgets.key_bar import KeyHint


def edge_offers(pane_id: str, labels: Mapping[str, str]) -> tuple[BorderButton, ...]:
    """The words on the top edge of a pane, in the order of the table; `labels` by id in the place of the table's."""
    return tuple(
        BorderButton(labels.get(key.id, key.label), key.action, key.edge)
        for key in KEYS
        if key.edge is not None and pane_id in (key.panes or (key.where,))
    )


def footer_hints(
    pane_id: str | None, remapped: Mapping[str, str], labels: Mapping[str, str]
) -> tuple[list[KeyHint], list[KeyHint]]:
    """What the footer shows while a pane has the focus: the pane's keys before the common ones; and what always stays.

    `labels` by id stand in the place of the table's.

    While a prompt is typed only keys that are no text are shown.
    """
    typing = pane_id == "prompt"
    shown = [key for key in KEYS if key.footer is not None and key.where in {"app", pane_id}]
    shown.sort(key=lambda key: (key.where == "app", key.footer))
    hints = [hint for key in shown if (hint := _hint(key, remapped, labels, typing))]
    always = [_hint(BY_ID[key_id], remapped, labels, True) for key_id in ("app.palette", "app.help")]
    return hints, [hint for hint in always if hint]


def hint(key_id: str, remapped: Mapping[str, str], label: str = "") -> KeyHint:
    """One binding as a button, with its first key."""
    key = BY_ID[key_id]
    return KeyHint(display(keys_of(key, remapped)[0]), label or key.label, key.action)


def _hint(key: Key, remapped: Mapping[str, str], labels: Mapping[str, str], typing: bool) -> KeyHint | None:
    keys = keys_of(key, remapped)
    alone = [one for one in keys if is_text(one) or one == "enter"]
    usable = [one for one in keys if not is_text(one)] if typing else alone[::-1] or keys
    return KeyHint(display(usable[0]), labels.get(key.id, key.label), key.action) if usable else None
