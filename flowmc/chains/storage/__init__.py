"""The run directory: checkpoint, measurements, configurations."""
