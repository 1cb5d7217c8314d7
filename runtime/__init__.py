"""What this machine can do: models in child processes, and the device's real figures."""
