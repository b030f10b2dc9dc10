"""LIME files: ILDG, SciDAC (QIO), and scalar and U(1) fields of our own in the same container."""
