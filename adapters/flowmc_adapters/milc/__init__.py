"""MILC's binary files and the info files beside them."""
