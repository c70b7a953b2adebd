"""How a model learns: optimizer, schedule, state, step, evaluation, checkpoints, and what a run writes about itself."""
