"""Whole meshes in one process: nodes, their network, their clock, from one seed."""
