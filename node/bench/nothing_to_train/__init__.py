"""A Flower app whose rounds train nothing, as its makers' tutorials write one; `node/bench/stock_flower.py` runs it."""
