"""The verifiers behind the gateway: each one's link, the choice among them, and failover."""
