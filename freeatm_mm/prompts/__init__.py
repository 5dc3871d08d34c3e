"""What to draw, and where in the sentence each noun stands."""
from .record import Noun, PromptRecord, read_prompts, write_prompts
from .templates import TEMPLATES, Subject, fill_template

__all__ = ['Noun', 'PromptRecord', 'Subject', 'TEMPLATES', 'fill_template', 'read_prompts',
           'write_prompts']
