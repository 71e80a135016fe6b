"""Adapters that travel: the card that says what one is and how to use it."""
