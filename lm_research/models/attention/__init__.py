"""Attention: one module for training, prefill, decoding and capture; masks; kernels by platform; a cache that only stores."""
