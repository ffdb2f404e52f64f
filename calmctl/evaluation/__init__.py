"""Retrieval evaluated: scores of all pairs, metrics, their uncertainty, and the paper's numbers."""
