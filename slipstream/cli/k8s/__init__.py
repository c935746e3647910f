"""`slipstream k8s`: what a release on Kubernetes needs from outside."""
