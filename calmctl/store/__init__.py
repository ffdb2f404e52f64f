"""The feature store: its files, who writes them, and the extraction that fills it."""
