"""Scalar and U(1) fields, whatever the format of the file."""
