"""Configurations that stand on disk, as streams of fields with names."""
