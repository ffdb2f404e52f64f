"""Data: sample types, one module a dataset, decoding, the feature store. Knows files, not models."""
