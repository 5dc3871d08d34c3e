"""From prompts to a store: a diffusion pipeline draws, the recorder keeps each noun's mask."""
from .generate import GenerationSummary, generate
from .pipelines import LoadedPipeline, load_pipeline
from .plan import Plan, PromptFile, sample_key, sample_seed

__all__ = ['GenerationSummary', 'LoadedPipeline', 'Plan', 'PromptFile', 'generate',
           'load_pipeline', 'sample_key', 'sample_seed']
