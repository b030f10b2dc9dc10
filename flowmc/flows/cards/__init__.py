"""Flow files: weights with a card that says what they are."""
