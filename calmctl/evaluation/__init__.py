"""Scoring of all pairs, retrieval metrics, uncertainty of the numbers, tables."""
