"""Documents: text to frontmatter and sections, what trains on them, appending a section, watching a file.

Names load on first use, so that importing the package costs nothing; nothing here needs torch or textual.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
