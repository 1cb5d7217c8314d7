"""One member's part of a training run: the loop, what it stands on, and the child process in which both live."""
