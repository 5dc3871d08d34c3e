"""The command 'freeatm judge', from a checkout that isn't installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from freeatm_mm.cli.judge import main

if __name__ == '__main__':
    sys.exit(main())
