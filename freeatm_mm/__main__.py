"""`python -m freeatm_mm`: the command `freeatm`."""

import sys

from freeatm_mm.cli import main

if __name__ == '__main__':
    sys.exit(main())
