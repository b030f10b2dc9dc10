"""``flowmc free-energy``: ln Z of a theory, by every estimator that a configuration asks for."""
