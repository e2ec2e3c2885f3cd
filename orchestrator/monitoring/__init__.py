"""What Prometheus sees of running jobs."""
