"""Third-party checkpoints are read as sources, and models are written as checkpoints."""
