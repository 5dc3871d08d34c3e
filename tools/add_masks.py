"""The command 'freeatm add-masks', from a checkout that isn't installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from freeatm_mm.cli.add_masks import main

if __name__ == '__main__':
    sys.exit(main())
