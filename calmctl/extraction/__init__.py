"""Clips in, features out: decoding and encoding once, into a feature store."""
