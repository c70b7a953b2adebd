"""Other people's formats: the directories of Hugging Face models, read and written without torch or transformers."""
