"""Vocabulary and rules that every process shares. Imports neither torch nor grpc."""
