"""`calmctl search` and `calmctl serve`, which are one engine."""
