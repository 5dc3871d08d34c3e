"""From prompts to a store: a diffusion pipeline draws, the recorder keeps each noun's mask."""
from .engines import ENGINES, WorkerError, run_ray, run_workers
from .estimate import RunEstimate, estimate_run
from .generate import GenerationSummary, draw_store, generate
from .pipelines import LoadedPipeline, load_pipeline
from .plan import Plan, PromptFile, sample_key, sample_seed
from .source import GenerationJob, ShardSource, StorePlan

__all__ = ['ENGINES', 'GenerationJob', 'GenerationSummary', 'LoadedPipeline', 'Plan', 'PromptFile',
           'RunEstimate', 'ShardSource', 'StorePlan', 'WorkerError', 'draw_store', 'estimate_run',
           'generate', 'load_pipeline', 'run_ray', 'run_workers', 'sample_key', 'sample_seed']
