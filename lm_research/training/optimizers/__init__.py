"""One file an optimizer: its settings, and the optax chain that they make."""
