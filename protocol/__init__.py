"""What peers say to each other: pure, no I/O, no clock."""
