"""The on-device engine from Python: its library, models and contexts, text in and text out. Never imports torch."""
