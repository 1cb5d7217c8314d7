"""`agora bench`: every promised figure, measured on real daemons through the public surface.

A *chapter* sets up one mesh of real processes on loopback and measures some *figures* on it (`figures.py`, each function
reads like the definition of what it measures); `runner.py` runs the chapters, `report.py` shows the figures as they come
and writes `docs/BENCHMARKS.md`. Ratios compare two things in one run, turn by turn, since a shared machine is not equally
fast all the time. No figure is ever asserted by a test.
"""
