"""Configuration files: tables, their keys, their values, and how they are written back."""
