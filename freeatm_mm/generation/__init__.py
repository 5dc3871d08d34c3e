"""From prompts to a store: a diffusion pipeline generates, the recorder keeps each noun's mask."""

from freeatm_mm.generation.engines import WorkerError, run_ray, run_workers
from freeatm_mm.generation.estimate import RunEstimate, estimate_run
from freeatm_mm.generation.existing import MaskJob, MaskSource, add_masks
from freeatm_mm.generation.generate import GenerationSummary, generate, generate_store
from freeatm_mm.generation.images import ImageReader, find_images
from freeatm_mm.generation.job import GenerationJob
from freeatm_mm.generation.listing import ImageFile, list_images
from freeatm_mm.generation.outcomes import GenerationError, TooManyFailed
from freeatm_mm.generation.pipelines import LoadedPipeline, load_pipeline
from freeatm_mm.generation.plan import Plan, PromptFile, StorePlan, sample_key, sample_seed
from freeatm_mm.generation.redo import redo_failed
from freeatm_mm.generation.source import ShardSource

__all__ = [
    'GenerationError',
    'GenerationJob',
    'GenerationSummary',
    'ImageFile',
    'ImageReader',
    'LoadedPipeline',
    'MaskJob',
    'MaskSource',
    'Plan',
    'PromptFile',
    'RunEstimate',
    'ShardSource',
    'StorePlan',
    'TooManyFailed',
    'WorkerError',
    'add_masks',
    'estimate_run',
    'find_images',
    'generate',
    'generate_store',
    'list_images',
    'load_pipeline',
    'redo_failed',
    'run_ray',
    'run_workers',
    'sample_key',
    'sample_seed',
]
