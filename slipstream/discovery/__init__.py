"""Who there is, as Kubernetes says it: the endpoints of a Service, watched."""
