"""Results that are kept, what follows from them, and how they are shown.

The file format and its tables need numpy alone (scipy for tests of differences); `plots`, `page`
and `paper_tables` are imported by their own names.
"""

from freeatm_mm.results.comparison import (
    Group,
    PairedDifference,
    arm_name,
    arm_names,
    check_options,
    comparisons,
    epochs_to_match,
    holm,
    is_smoke,
    is_untrained,
    paired_difference,
    summarise_rows,
)
from freeatm_mm.results.file import (
    add_row,
    describe_hardware,
    join_heads,
    merge_row,
    new_results,
    open_results,
    package_versions,
    read_results,
    update_results,
    validate_results,
    write_results,
)
from freeatm_mm.results.markdown import (
    result_tables,
    to_markdown,
    update_with_page,
    write_with_page,
)
from freeatm_mm.results.metrics import METRICS, Metric, metric_title
from freeatm_mm.results.outcomes import (
    CrossedDifference,
    crossed_difference,
    pack_outcomes,
    unpack_outcomes,
)

__all__ = [
    'METRICS',
    'CrossedDifference',
    'Group',
    'Metric',
    'PairedDifference',
    'add_row',
    'arm_name',
    'arm_names',
    'check_options',
    'comparisons',
    'crossed_difference',
    'describe_hardware',
    'epochs_to_match',
    'holm',
    'is_smoke',
    'is_untrained',
    'join_heads',
    'merge_row',
    'metric_title',
    'new_results',
    'open_results',
    'pack_outcomes',
    'package_versions',
    'paired_difference',
    'read_results',
    'result_tables',
    'summarise_rows',
    'to_markdown',
    'unpack_outcomes',
    'update_results',
    'update_with_page',
    'validate_results',
    'write_results',
    'write_with_page',
]
