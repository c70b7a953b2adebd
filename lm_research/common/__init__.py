"""Helpers that all packages use: paths, texts, JSON and YAML, writing to disk, standard streams, flags and signals."""
