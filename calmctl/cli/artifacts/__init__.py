"""Commands about what is kept and passed on: weights and runs."""
