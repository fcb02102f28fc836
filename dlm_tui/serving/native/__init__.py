"""Answers from our own engine: rows of different mixes decoded together."""
