"""Attention: one module for training, prefill, decoding and capture, with masks, a key/value cache and kernels per platform."""
