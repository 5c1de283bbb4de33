"""One file per verb: what a command does from start to end."""
