"""HTTP server of a model: continuous batching over fixed slots, in OpenAI's format. The command is serve.py."""
