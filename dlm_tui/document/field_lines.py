"""Where a field of the frontmatter stands in the file."""

from __future__ import annotations

import yaml

from dlm_tui.document.identity import frontmatter_span
from dlm_tui.document.yaml_profile import BoundedLoader


def line_of_field(text: str, field: str) -> int:
    """The line, from 1, of a dotted path's last key that is written there; 2 where not even the first is.

    `training.adapters.tone.lora_r` is found at its own key, a field that is missing at the key that should hold it.
    """
    span = frontmatter_span(text)
    if span is None:
        return 2
    loader = BoundedLoader(text[slice(*span)])
    try:
        node = loader.get_single_node()
    except yaml.YAMLError:
        return 2
    finally:
        loader.dispose()
    line = 2
    for part in field.split("."):
        if isinstance(node, yaml.SequenceNode) and part.isdigit() and int(part) < len(node.value):
            node = node.value[int(part)]
            line = node.start_mark.line + 2
            continue
        if not isinstance(node, yaml.MappingNode):
            break
        found = [(key, value) for key, value in node.value if getattr(key, "value", None) == part]
        if not found:
            break
        key, node = found[-1]
        line = key.start_mark.line + 2
    return line
