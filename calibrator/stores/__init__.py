"""What the service remembers over restarts: sweeps and recommendations."""
