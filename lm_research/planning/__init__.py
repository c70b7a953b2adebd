"""What a run will need and cost, before it is started: memory, traffic and time by formula, and by the compiler."""
