"""The per-document store: paths, versions, manifest, locks, logs, gate files, metrics. No torch here.

Names load on first use: the manifest needs pydantic, which takes a tenth of a second to import.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
