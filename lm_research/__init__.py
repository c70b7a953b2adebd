"""lm_research: pre-train and study encoder and decoder language models in JAX."""

__version__ = "0.1.0"
