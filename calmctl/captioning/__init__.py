"""Captions from a trained model: search, batches of clips, segments of long videos."""
