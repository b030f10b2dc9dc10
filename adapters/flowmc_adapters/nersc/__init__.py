"""NERSC archives."""
