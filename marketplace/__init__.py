"""Who does the work, for how much, and what may be installed: pure rules."""
