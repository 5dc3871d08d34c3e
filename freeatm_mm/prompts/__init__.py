"""What to generate, and where in the sentence each noun stands.

``record`` and ``templates`` are all that other parts need. ``imagenet``, ``kinds`` and ``grammar``
make prompts of ImageNet's classes; ``captions`` (with ``tables`` and ``text``) and ``nouns`` of the
captions of data sets; ``language_models``, ``answers`` and ``rewrite`` rewrite prompts; ``journal``
writes files of millions, and ``reading`` reads files that may be anything.
"""

from freeatm_mm.prompts.record import Noun, PromptRecord, read_prompts, write_prompts
from freeatm_mm.prompts.templates import TEMPLATES, Subject, fill_template

__all__ = [
    'TEMPLATES',
    'Noun',
    'PromptRecord',
    'Subject',
    'fill_template',
    'read_prompts',
    'write_prompts',
]
