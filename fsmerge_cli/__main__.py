"""`python -m fsmerge_cli` is `fsmerge`."""

import sys

from fsmerge_cli.cli import main

if __name__ == "__main__":
    sys.exit(main())
