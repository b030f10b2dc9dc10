"""HDF5 files: gauge fields in several layouts, scalar and U(1) fields in one of our own."""
