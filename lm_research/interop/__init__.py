"""External formats, read and written without torch or transformers: Hugging Face models, peft adapters, sentence-transformers."""
