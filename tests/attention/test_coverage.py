"""Every pipeline that the installed diffusers offers for a task has a row or a reason."""

from __future__ import annotations

import io
import re
from pathlib import Path

import diffusers
import pytest
from diffusers.pipelines import auto_pipeline

from freeatm_mm.attention import coverage as module
from freeatm_mm.attention.coverage import OTHERS, TASKS, coverage, print_coverage
from freeatm_mm.attention.families import FAMILIES, NOT_COVERED, TEXTLESS, find_family


@pytest.mark.parametrize('task', TASKS)
def test_each_pipeline_of_diffusers_has_a_row_or_a_reason(task):
    rows = coverage(task)
    assert {row.pipeline for row in rows} == {
        pipeline.__name__ for pipeline in getattr(auto_pipeline, TASKS[task]).values()
    }
    unknown = [row.pipeline for row in rows if row.family is None and not row.reason]
    assert not unknown, (
        f'{unknown} of the installed diffusers: add a row (docs/generators.md, Add a family), or a '
        'reason to freeatm_mm/attention/families/not_covered.py'
    )


def test_each_pipeline_of_other_tasks_has_a_row_or_a_reason():
    rows = coverage(OTHERS)
    assert len(rows) > 90 and not {row.pipeline for row in rows} & {
        row.pipeline for task in TASKS for row in coverage(task)
    }
    unknown = [row.pipeline for row in rows if row.family is None and not row.reason]
    assert not unknown, (
        f'{unknown} of the installed diffusers take prompts: add a row (docs/generators.md, Add a '
        'family), or a reason to freeatm_mm/attention/families/not_covered.py'
    )
    # Whatever has a name of its own is a pipeline that diffusers has, or had.
    names = {row.pipeline for row in rows}
    assert {'StableDiffusionGLIGENPipeline', 'StableDiffusionSAGPipeline'} <= names
    assert 'DDPMPipeline' not in names


def test_an_unknown_class_of_another_task_is_found(monkeypatch):
    class NewPipeline(diffusers.DiffusionPipeline):
        def __call__(self, image, editing_prompt): ...

    class PromptlessPipeline(diffusers.DiffusionPipeline):
        def __call__(self, image, num_images_per_prompt, negative_prompt): ...

    monkeypatch.setattr(type(diffusers), '__dir__', lambda self: ['NewPipeline', 'OldPipeline'])
    monkeypatch.setattr(diffusers, 'NewPipeline', NewPipeline, raising=False)
    monkeypatch.setattr(diffusers, 'OldPipeline', PromptlessPipeline, raising=False)
    assert coverage(OTHERS) == [module.Coverage('NewPipeline', None, '')]


def test_most_have_a_row():
    assert len([row for row in coverage('text to image') if row.family]) >= 36


def test_an_unknown_class_is_found(monkeypatch):
    class NewPipeline:
        """A class that diffusers might add tomorrow."""

    monkeypatch.setitem(auto_pipeline.AUTO_INPAINT_PIPELINES_MAPPING, 'new', NewPipeline)
    assert module.Coverage('NewPipeline', None, '') in coverage('inpainting')
    out = io.StringIO()
    print_coverage(out)
    assert 'NewPipeline' in out.getvalue() and 'none: unknown' in out.getvalue()


def test_the_table_says_how_many_give_masks():
    out = io.StringIO()
    print_coverage(out)
    for task in (*TASKS, OTHERS):
        rows = coverage(task)
        count = sum(row.family is not None for row in rows)
        assert f'{task}: {count} of {len(rows)} pipelines give masks' in out.getvalue()
    assert 'KandinskyV22CombinedPipeline' in out.getvalue()


def test_the_docs_count_what_gives_masks():
    counts = {}
    for task in (*TASKS, OTHERS):
        rows = coverage(task)
        counts[task] = (sum(row.family is not None for row in rows), len(rows))
    doc = (Path(__file__).parents[2] / 'docs' / 'generators.md').read_text(encoding='utf-8')
    rows = re.findall(rf'^\| {re.escape(diffusers.__version__)} \| (.*) \|$', doc, re.MULTILINE)
    if not rows:
        pytest.skip(f'the docs have no counts of diffusers {diffusers.__version__}')
    for task, cell in zip((*TASKS, OTHERS), rows[0].split(' | '), strict=True):
        said, total = map(int, cell.split(' of '))
        assert (said, total) == counts[task]


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match="task must be one of.*'video'"):
        coverage('video')


def test_what_has_a_reason_has_no_row():
    named = {name for family in FAMILIES for name in family.pipelines}
    assert not named & set(NOT_COVERED)
    assert not set(TEXTLESS) & set(NOT_COVERED)


def test_a_refusal_gives_the_reason():
    for name, reason in NOT_COVERED.items():
        with pytest.raises(ValueError) as refusal:
            find_family(type(name, (), {})())
        assert f'{name} gives no masks of nouns: {reason}' in str(refusal.value)
