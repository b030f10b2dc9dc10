"""What runs for hours needs: a lock, signals, a deadline, a log, files that last."""
