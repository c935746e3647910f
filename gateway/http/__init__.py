"""The HTTP front door: OpenAI's shapes over the generation core."""
