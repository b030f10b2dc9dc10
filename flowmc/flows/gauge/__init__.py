"""Flows of gauge fields."""
