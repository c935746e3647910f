"""The verifier service: the full model, the step loop, the decision on every token."""
