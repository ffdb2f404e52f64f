"""Video files: inspected, read by time, cut to size, in processes of their own."""
