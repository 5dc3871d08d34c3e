"""The places that an addition touches: what CONTRIBUTING says, and the tests of additions do.

`<name>` stands for what is added. Tests and a row of the docs belong to every addition.
"""

from __future__ import annotations

PLACES: dict[str, dict[str, str]] = {
    'method': {
        'freeatm_mm/models/<name>.py': 'the model, registered, and its import in the __init__.py',
        'configs/<name>_freeatm.py': "what mmpretrain's config does not have",
        'configs/miniature/<name>_freeatm.py': 'the same at the scale of a CPU',
        'freeatm_mm/methods.py': 'an entry of METHODS: title, model, architecture',
        'tests/models/test_<name>.py': "without masks it is mmpretrain's, bit for bit",
        'docs/pretraining.md': 'a row',
    },
    'benchmark': {
        'configs/downstream/<framework>/<name>.py': 'the config',
        'freeatm_mm/downstream/runs.py': 'an entry of BENCHMARKS: config, metrics, batch, suite, '
        'layout',
        'docs/downstream.md': 'a row',
    },
    'data set of a benchmark': {
        'freeatm_mm/downstream/tiny_datasets.py': 'an entry of LAYOUTS: folder, writer',
    },
    'metric': {
        'freeatm_mm/results/metrics.py': 'an entry of METRICS: title, column',
    },
    'caption source': {
        'freeatm_mm/prompts/captions.py': 'an entry of READERS: description, file, ids, reader',
        'tests/prompts/test_captions.py': 'a file of it is read',
        'docs/prompts.md': "the entry's row, which a test compares",
    },
    'arm of the miniature': {
        'freeatm_mm/miniature/arms.py': 'an entry of ARMS: what its masks are called, options',
    },
}
"""Addition -> path -> what goes there."""
