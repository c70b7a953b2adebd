"""Optimizers, one file each: its settings, and the optax chain made from them."""
