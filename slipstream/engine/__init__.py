"""Runs a model over packed ragged batches with a paged KV pool. Knows token ids only."""
