"""Data sets: files on disk become clips, captions, and who describes whom."""
