"""Every kind of tokenizer behind one face; training, special tokens, chat templates."""
