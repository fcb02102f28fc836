"""Quantising a GGUF: which type each tensor gets, the blocks themselves, and the importance of each weight column."""
