"""The command 'freeatm lavis-point', from a checkout that isn't installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from freeatm_mm.cli.lavis_point import main

if __name__ == '__main__':
    sys.exit(main())
