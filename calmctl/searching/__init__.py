"""Sentences in, videos out: a folder or a feature store searched, exactly or in two stages."""
