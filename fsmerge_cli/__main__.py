"""`python -m fsmerge_cli` runs `fsmerge`."""

import sys

from fsmerge_cli.cli import main

if __name__ == "__main__":
    sys.exit(main())
