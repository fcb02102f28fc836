"""Packs: a document with its store in one file, in the container of the `dlm` tool (formats-2.md section 2).

`layout` has the records and names, `reading` checks a pack without writing anything, `writing` makes one,
`installing` unpacks one.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
