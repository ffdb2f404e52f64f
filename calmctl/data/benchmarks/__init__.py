"""Published data sets: a file and one declaration each."""
