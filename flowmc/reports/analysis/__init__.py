"""Numbers from recorded runs."""
