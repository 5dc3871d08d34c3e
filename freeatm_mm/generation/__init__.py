"""From prompts to a store: a diffusion pipeline draws, the recorder keeps each noun's mask."""
from .generate import GenerationSummary, draw_store, generate
from .pipelines import LoadedPipeline, load_pipeline
from .plan import Plan, PromptFile, sample_key, sample_seed
from .source import GenerationJob, ShardSource

__all__ = ['GenerationJob', 'GenerationSummary', 'LoadedPipeline', 'Plan', 'PromptFile',
           'ShardSource', 'draw_store', 'generate', 'load_pipeline', 'sample_key', 'sample_seed']
