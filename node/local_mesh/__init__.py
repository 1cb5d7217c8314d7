"""A mesh of real daemons on this machine, driven through the public surface alone: what the demo and the bench stand on."""
