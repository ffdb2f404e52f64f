"""Captions: found by a search, scored against references, read from files."""
