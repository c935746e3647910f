"""What a service tells of itself: metrics to scrape, spans of requests, log lines."""
