"""A folder or a store as an index; sentences in, videos out."""
