"""How good a flow is."""
