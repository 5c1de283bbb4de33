"""The shipped configuration, installed as `fsmerge_cli.configs`."""
