"""The drafter service: a cheaper copy of the model that runs ahead of its verifiers."""
