"""Run folders, checkpoints, and what a run was made of."""
