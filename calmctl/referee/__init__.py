"""Scores of anybody: read from what people hold, looked through for what is wrong, and measured."""
