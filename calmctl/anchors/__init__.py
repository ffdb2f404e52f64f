"""Anchors: vocabularies of class labels, and the distributions over them."""
