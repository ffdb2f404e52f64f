"""Fusion heads: how a sentence and the frames of a clip become a score."""
