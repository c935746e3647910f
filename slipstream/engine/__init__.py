"""Runs a model over packed ragged batches with a paged KV pool. Knows token ids only."""

import os

# How long OpenMP's threads spin for the next product before they sleep: about 0.2 ms here, where
# the default is some 6. Verifier and drafter may take turns on the same cores, and whoever has its
# turn would share them with the other's spinning threads. Read when torch is loaded, which every
# module of this package does; whoever starts a service can still decide otherwise.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
