"""Training: optimizer, schedule, parameter groups, state, training step and evaluation."""
