"""How many preferences every adapter has, how many it needs, and what the frontmatter lacks to train them."""

from __future__ import annotations

from collections import Counter

from dlm_tui.document.document import Document
from dlm_tui.document.errors import BodyError
from dlm_tui.document.pairs import preference_triples

WANTED = 4
"""Preferences of an adapter below which a training on them tells little from noise; as many as a batch has rows."""
_EPOCHS = "10"
_SHARE_OF_RATE = 0.25


def preference_counts(document: Document) -> dict[str, int]:
    """Adapter → preferences that reach it; untagged ones reach the first. Malformed bodies have none."""
    names = document.routing_names
    found: Counter[str] = Counter()
    for section in document.sections:
        if section.type == "preference":
            try:
                found[section.adapter or names[0]] += len(preference_triples(section))
            except BodyError:
                continue
    return {name: found[name] for name in names}


def lacking_settings(document: Document) -> dict[str, str]:
    """Dotted path below `training` → the value to write so that preferences train; {} where the document says it all.

    `enabled` only where it is false in writing: without the key preferences in the body turn their phase on. The
    schema's rate and single pass move a small adapter by nothing, so that where the document gives none of both they
    are a quarter of the smallest rate of its adapters, and ten passes.
    """
    preference = document.training.preference
    lacking = {}
    if "enabled" in preference.model_fields_set and not preference.enabled:
        lacking["preference.enabled"] = "true"
    if not preference.hyperparams.model_fields_set & {"learning_rate", "num_epochs"}:
        rate = min(document.adapter_settings(name).learning_rate for name in document.routing_names)
        lacking["preference.hyperparams.learning_rate"] = f"{rate * _SHARE_OF_RATE:g}"
        lacking["preference.hyperparams.num_epochs"] = _EPOCHS
    return lacking
