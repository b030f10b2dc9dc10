"""Means with honest errors: autocorrelation, weights of samples, exchange, cost."""
