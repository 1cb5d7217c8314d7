"""The roles a node plays, a trio task each."""
