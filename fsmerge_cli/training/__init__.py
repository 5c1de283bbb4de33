"""The one training loop and all it needs."""
