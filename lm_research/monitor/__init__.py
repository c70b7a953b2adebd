"""What a run sees of itself while it trains: held-out scores, rates, where the time goes, and its summary."""
