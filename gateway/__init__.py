"""The front door: OpenAI-compatible HTTP and gRPC. Holds no model and imports no torch."""
