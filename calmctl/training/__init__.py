"""The training loop, optimiser groups and schedule, checkpoints, run folders."""
