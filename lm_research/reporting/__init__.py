"""Runs as a page to look at: read, summarized, fitted, and drawn into one HTML file that needs nothing else."""
