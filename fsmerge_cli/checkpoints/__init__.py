"""Files of others become sources, and merged models become files."""
