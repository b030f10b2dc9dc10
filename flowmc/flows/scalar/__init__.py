"""Flows of scalar fields."""
