"""The commands `inspect` and `convert`."""
