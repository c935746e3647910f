"""Generations that outlive their client's connection, and their gateway."""
