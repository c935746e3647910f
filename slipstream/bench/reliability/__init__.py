"""What reliability costs and how fast it acts: behind `slipstream bench reliability`."""
