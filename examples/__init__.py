"""Programs to read and run: a real tiny model with its recipe, and clients of the gateway."""
