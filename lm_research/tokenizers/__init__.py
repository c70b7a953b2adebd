"""Tokenizers of all types behind one API: loading, training, special tokens and chat templates."""
