"""Text to ids and back: train, convert, load, encode, decode."""
