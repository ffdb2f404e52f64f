"""Runs on disk: the folder a training leaves behind, its checkpoints, and the model made of them again."""
