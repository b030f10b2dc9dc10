"""Flows of one block of sites, given its surroundings."""
