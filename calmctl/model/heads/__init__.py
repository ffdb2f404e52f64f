"""Fusion heads: how frames become a video feature, and what a (text, video) pair scores."""
