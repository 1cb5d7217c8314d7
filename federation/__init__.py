"""How many devices train one adapter: its mathematics, its privacy, and the rules of a run. Pure but for numpy and Flower."""
