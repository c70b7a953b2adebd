"""Inference with trained models: text generation, scoring, embeddings and mask filling."""
