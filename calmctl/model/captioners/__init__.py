"""Captioners of other papers: what reads, and what writes; each is chosen by `build_caption_model`."""
