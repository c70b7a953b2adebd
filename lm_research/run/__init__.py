"""A training run: its loop, directory, checkpoints, trackers, budget and time, evaluation and summary."""
