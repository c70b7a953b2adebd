"""What is read: sources, sentences, tokenizer, token store, corpus, randomness and the loader. Never imports jax."""
