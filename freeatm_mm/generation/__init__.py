"""From prompts to a store: a diffusion pipeline draws, the recorder keeps each noun's mask."""
from .engines import ENGINES, WorkerError, run_ray, run_workers
from .estimate import RunEstimate, estimate_run
from .generate import GenerationSummary, draw_store, generate
from .pipelines import LoadedPipeline, load_pipeline
from .plan import Plan, PromptFile, sample_key, sample_seed
from .redo import redo_failed
from .source import DrawingError, GenerationJob, ShardSource, StorePlan, TooManyFailed

__all__ = ['ENGINES', 'DrawingError', 'GenerationJob', 'GenerationSummary', 'LoadedPipeline',
           'Plan', 'PromptFile', 'RunEstimate', 'ShardSource', 'StorePlan', 'TooManyFailed',
           'WorkerError', 'draw_store', 'estimate_run', 'generate', 'load_pipeline', 'redo_failed',
           'run_ray', 'run_workers', 'sample_key', 'sample_seed']
