"""Runs as a page to look at: read, summarised, fitted, and drawn into one HTML file that needs nothing else."""
