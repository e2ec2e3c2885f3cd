"""What is known of runs and sweeps, as values read from and written to their folders."""
