"""A model behind HTTP: continuous batching over fixed slots, in OpenAI's format. The verb is serve.py."""
