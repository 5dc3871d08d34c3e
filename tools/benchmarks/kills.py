"""Kill a run with SIGKILL at random moments, go on each time, and compare with an undisturbed run.

    python tools/benchmarks/kills.py                          100 kills of one worker
    python tools/benchmarks/kills.py --workers 2 --seed 1     of two workers that share a store

Every sample must be there once, and every byte must be that of the undisturbed run. Writes
`kill-test.json` and `.md` (--out); exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from freeatm_mm.cli._numbers import SEED, whole
from freeatm_mm.errors import FOUND, counted, tool

ROOT = Path(__file__).resolve().parents[2]
WORDS = ('dog', 'cat', 'bird', 'fish', 'flower', 'fruit', 'lamp', 'boat')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        '--pipeline',
        default=str(ROOT / 'weights' / 'miniature-generator'),
        help="a pipeline's folder (default: the miniature generator)",
    )
    add('--kills', type=whole(0, 10**6), default=100, help='how many (default: 100)')
    add('--workers', type=whole(1, 1024), default=1, help='workers at a time (default: 1)')
    add('--samples', type=whole(1, 10**10), default=300, help='samples of a run (default: 300)')
    add(
        '--samples-per-shard', type=whole(1, 10**6), default=3, help='the unit of work (default: 3)'
    )
    add('--steps', type=whole(1, 10_000), default=2, help='denoising steps (default: 2)')
    add('--seed', type=SEED, default=0, help='of the moments (default: 0)')
    add(
        '--out',
        type=Path,
        default=Path('work_dirs/results/kill-test.json'),
        help='result file (%(default)s)',
    )
    return parser.parse_args(argv)


@tool
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    import torch
    from kill_and_resume import kill_and_resume

    from freeatm_mm.generation import ShardSource, load_pipeline
    from freeatm_mm.prompts import Noun, PromptRecord
    from freeatm_mm.results import add_row, open_results, update_with_page

    open_results(args.out, 'kill-test', '')  # one that can't be used is told at once
    torch.set_num_threads(1)  # forks of a process with threads would wait for them for ever
    words = [WORDS[number % len(WORDS)] for number in range(args.samples)]
    prompts = [
        PromptRecord(
            f'{number:06d}',
            f'a photo of a {word}',
            (Noun(word, 13, 13 + len(word), word),),
            'kill test',
        )
        for number, word in enumerate(words)
    ]
    loaded = load_pipeline(args.pipeline, device='cpu')
    loaded.pipe.set_progress_bar_config(disable=True)
    source = ShardSource(
        loaded.pipe,
        prompts,
        name=loaded.name,
        revision=loaded.revision,
        steps=args.steps,
        batch_size=args.samples_per_shard,
        samples_per_shard=args.samples_per_shard,
    )
    with tempfile.TemporaryDirectory() as scratch:
        report = kill_and_resume(
            source, Path(scratch), args.kills, workers=args.workers, seed=args.seed
        )
    moments = ', '.join(f'{count} {moment}' for moment, count in report.moments.most_common())
    print(
        f'{counted(report.kills, "kill")} over {counted(report.runs, "run")} of '
        f'{counted(report.samples, "sample")}: {moments}'
    )
    print(f'undisturbed {report.plain_seconds:.1f} s, with kills {report.killed_seconds:.1f} s')
    print('\n'.join(report.problems) or 'every sample once, every byte as in the undisturbed run')
    command = shlex.join(['python', 'tools/benchmarks/kills.py', *(argv or sys.argv[1:])])
    row = {
        'case': f'kill-{report.kills}-times-{args.workers}-workers',
        'unit': 's',
        'baseline': report.plain_seconds,
        'ours': report.killed_seconds,
        'ratio': report.killed_seconds / report.plain_seconds,
        'details': {
            'runs': report.runs,
            'samples': report.samples,
            'seed': args.seed,
            'moments': dict(report.moments.most_common()),
            'problems': report.problems,
        },
    }

    def change(results: dict[str, Any]) -> None:
        results['command'] = command
        results['description'] = (
            'Workers killed with SIGKILL at random moments of a run and started again. Every '
            'sample must be there once and every byte that of an undisturbed run: problems lists '
            'what differs. The times are those of the undisturbed run and of one with kills.'
        )
        add_row(results, row)

    update_with_page(args.out, change, 'kill-test', command)
    return FOUND if report.problems else 0


if __name__ == '__main__':
    sys.exit(main())
