"""Clips and captions as a model takes them: from videos, or from features that were extracted before."""
