"""The laws of the world, checked from outside: journals, disks, ledgers and the network, never a node's own word."""
