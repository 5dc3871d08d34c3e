"""A run that can be sent to workers: where everything lies, and the options of its source."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from freeatm_mm.addresses import is_address, local_folder
from freeatm_mm.generation.limits import check_settings
from freeatm_mm.generation.loras import on_hub
from freeatm_mm.generation.outcomes import number_allowed
from freeatm_mm.generation.pipelines import load_pipeline
from freeatm_mm.generation.plan import Plan, PromptFile, read_manifest_of_run
from freeatm_mm.generation.source import ShardSource
from freeatm_mm.store import StoreError
from freeatm_mm.store.layout import MANIFEST, STORE_FORMAT, load_manifest, name_differences
from freeatm_mm.store.verify import shard_entries

__all__ = ['GenerationJob', 'absolute_place']


@dataclass(frozen=True)
class GenerationJob:
    """All that a worker needs to take part in a run, small enough to be sent to it.

    Args:
        pipeline: Folder of a pipeline, its id on the hub, or a single file of a checkpoint.
        prompts: The prompt file, or its address.
        limit: Use its first ``limit`` records only.
        revision: Branch, tag or commit on the hub.
        scheduler: A diffusers scheduler class in place of the pipeline's own.
        dtype: ``'float32'``, ``'float16'`` or ``'bfloat16'``.
        device: Where to run; ``None`` for a GPU if there is one. ``cuda`` becomes this worker's
            own GPU where several workers share a machine.
        variant: The weights' variant, such as ``'fp16'``.
        stages: The further stages of a cascade: folders, or ids on the hub, which may end in
            ``@`` and a branch, tag or commit.
        loras: Files of LoRAs, as `freeatm_mm.generation.load_pipeline` takes them.
        model_config: Of a pipeline that is a single file, where its configs are.
        offload: One of `freeatm_mm.generation.pipelines.OFFLOADS`.
        options: The further arguments of `ShardSource`.
    """

    pipeline: str
    prompts: str
    limit: int | None = None
    revision: str | None = None
    scheduler: str | None = None
    dtype: str = 'float32'
    device: str | None = None
    variant: str | None = None
    stages: tuple[str, ...] = ()
    loras: tuple[str, ...] = ()
    model_config: str | None = None
    offload: str = 'none'
    options: dict[str, Any] = field(default_factory=dict)

    #: What makes the samples.
    source_class: ClassVar[type[ShardSource]] = ShardSource
    #: The options that a store's config holds as they were given.
    kept_options: ClassVar[tuple[str, ...]] = (
        'steps',
        'guidance',
        'seed',
        'images_per_prompt',
        'image_format',
        'samples_per_shard',
        'height',
        'width',
    )
    #: Those that it holds only where they aren't these.
    optional_options: ClassVar[Mapping[str, Any]] = {
        'masks': True,
        'keep_hidden': False,
        'negative_prompt': None,
    }

    def records(self) -> PromptFile:
        """Open the prompt file.

        Raises:
            FileNotFoundError: If it is missing.
            ValueError: If a line is not a valid record.
        """
        return PromptFile(self.prompts, self.limit)

    @property
    def settings(self) -> dict[str, Any]:
        """The options, those left out by their defaults."""
        parameters = inspect.signature(self.source_class).parameters
        defaults = {name: parameter.default for name, parameter in parameters.items()}
        return {'images_per_prompt': 1, **defaults, **self.options}

    def check(self, out: str | Path | None = None) -> Plan:
        """Check all that can be checked before weights are loaded.

        Args:
            out: The folder of the store that will be generated.

        Returns:
            The plan, for `source`.

        Raises:
            FileNotFoundError: If the prompts are missing.
            ValueError: If a setting is out of range, or the prompts can't be used.
            StoreError: If ``out`` holds a store made with other settings.
        """
        settings = self.settings
        check_settings(settings)
        plan = Plan(self.records(), settings['images_per_prompt'], settings['samples_per_shard'])
        number_allowed(settings['max_failed'], plan.num_samples)
        if out is not None:
            self._check_store(local_folder(out), plan, settings)
        return plan

    def _check_store(self, out: Path, plan: Plan, settings: dict[str, Any]) -> None:
        """Refuse a store made with other settings, as far as these are known by now."""
        if not next(place for place in (out, *out.parents) if place.exists()).is_dir():
            raise StoreError(f"{out} can't be a store: it is a file, or lies in one")
        try:
            manifest = load_manifest(out / MANIFEST, STORE_FORMAT)
        except FileNotFoundError:
            return
        if not manifest.get('complete') and not any(out.glob('shard-*')):
            return
        known = {name: settings[name] for name in self.kept_options}
        for name in ('steps', 'guidance'):  # those of the pipeline, which isn't loaded yet
            if known.get(name, ...) is None:
                del known[name]
        known |= {'prompts_sha256': plan.fingerprint, 'num_samples': plan.num_samples}
        if self.scheduler:
            known['scheduler'] = self.scheduler
        config = manifest.get('config')
        found = (config if isinstance(config, dict) else {}) | {
            'samples_per_shard': manifest.get('samples_per_shard')
        }
        differences = name_differences({name: found.get(name) for name in known}, known)
        if differences:
            raise StoreError(
                f'{out} holds a store made otherwise: {"; ".join(differences)}. Use '
                'the same settings to go on, or another folder'
            )

    def source(self, local_rank: int | None = None, plan: Plan | None = None) -> ShardSource:
        """Read the prompts and load the pipeline.

        Args:
            local_rank: Number of this worker on its machine, where there are several.
            plan: What `check` returned.

        Raises:
            FileNotFoundError: If prompts or pipeline are missing.
            ValueError: If one of them can't be used, saying why.
        """
        plan = self.check() if plan is None else plan
        device = self.device
        if local_rank is not None and device in (None, 'cuda') and torch.cuda.is_available():
            device = f'cuda:{local_rank % torch.cuda.device_count()}'
        loaded = load_pipeline(
            self.pipeline,
            revision=self.revision,
            scheduler=self.scheduler,
            dtype=self.dtype,
            device=device,
            variant=self.variant,
            loras=self.loras,
            model_config=self.model_config,
            offload=self.offload,
        )
        stages = []
        for number, stage in enumerate(self.stages):
            place, _, revision = (stage, '', '') if Path(stage).is_dir() else stage.partition('@')
            stages.append(
                load_pipeline(
                    place,
                    revision=revision or None,
                    dtype=self.dtype,
                    device=device,
                    variant=self.variant,
                    # Stage II gets the embeddings of stage I, whose encoder has 5 billion weights.
                    without=('text_encoder',) if number == 0 else (),
                    offload=self.offload,
                )
            )
        options: dict[str, Any] = {'name': loaded.name, 'revision': loaded.revision}
        if stages:
            options['stages'] = stages
        if loaded.loras:
            options['loras'] = loaded.loras
        options |= self.options
        source = self.source_class(loaded.pipe, plan, **options, **self.further_options())
        source.in_format = lambda dtype: replace(self, dtype=dtype).source(local_rank, plan)
        if not local_rank:
            source.tell_chosen()
        return source

    def absolute(self) -> GenerationJob:
        """Return the same job with paths that hold from anywhere; ids on the hub as they are."""

        def absolute(place: str) -> str:
            return str(Path(place).absolute())

        def whole(place: str) -> str:
            return absolute(place) if Path(place).exists() else place

        def whole_lora(lora: str) -> str:  # or FILE:WEIGHT
            name = lora if lora.endswith('.safetensors') else lora.rpartition(':')[0]
            of_hub = not Path(name).is_file() and on_hub(name)
            return lora if of_hub else absolute(lora)

        return replace(
            self,
            prompts=absolute_place(self.prompts),
            pipeline=whole(self.pipeline),
            stages=tuple(whole(stage) for stage in self.stages),
            loras=tuple(whole_lora(lora) for lora in self.loras),
            model_config=None if self.model_config is None else whole(self.model_config),
        )

    def further_options(self) -> dict[str, Any]:
        """What `source_class` is told besides."""
        return {}

    @classmethod
    def of_store(
        cls, path: str | Path, pipeline: str, prompts: str, **changes: Any
    ) -> GenerationJob:
        """The job that made a store, from the store's own records.

        Args:
            path: The store's folder.
            pipeline: Where the pipeline lies now.
            prompts: Where the prompt file lies now.
            **changes: Fields of the job, and options, to set otherwise.

        Raises:
            StoreError: If there is no readable ``store.json``, or it says nothing of a pipeline.
        """
        file, manifest = Path(path) / MANIFEST, read_manifest_of_run(path)
        try:
            config = dict(manifest['config'])
            whole = config | {'samples_per_shard': manifest['samples_per_shard']}
            options = {name: whole[name] for name in cls.kept_options}
            options |= {name: config.get(name, own) for name, own in cls.optional_options.items()}
            options |= {'name': config['pipeline'], 'quality': config['quality'] or 95}
            if config.get('loras') and 'loras' not in changes:
                changes['loras'] = _loras_of_hub(config['loras'], file)
            # An unfinished store lists no shards yet, but those that are there have notes.
            entries = manifest['shards'] or [
                entry for _, entry in sorted(shard_entries(Path(path))[0].items())
            ]
            notes = entries[0].get('notes', {}) if entries else {}
            if 'batch_size' in notes:
                options['batch_size'] = notes['batch_size']
            # A folder's revision is a hash, to compare with; the hub's is one to ask for.
            revision = config['revision']
            stages = config.get('stages', [])
            if stages:
                options['stage_steps'] = [stage['steps'] for stage in stages]
                options['stage_guidance'] = [stage['guidance'] for stage in stages]
                if 'stages' not in changes:
                    changes['stages'] = _stages_of_hub(stages, file)
            job = cls(
                pipeline,
                prompts,
                limit=config['num_samples'] // config['images_per_prompt'],
                revision=None if str(revision).startswith('sha256:') else revision,
                scheduler=config.get('scheduler'),
                dtype=config['dtype'],
            )
        except (KeyError, TypeError, IndexError, AttributeError):
            raise StoreError(
                f"{file} doesn't say how it was generated, so nothing in it can be made again"
            ) from None
        own = {item.name for item in fields(cls)}
        options |= {name: value for name, value in changes.items() if name not in own}
        return replace(
            job, options=options, **{name: value for name, value in changes.items() if name in own}
        )


def _loras_of_hub(loras: list[dict[str, Any]], file: Path) -> tuple[str, ...]:
    """A run's LoRAs as `GenerationJob.loras`, from a store's records.

    Raises:
        StoreError: If they were files.
    """
    names = [f'{lora["name"]}:{lora["weight"]}' for lora in loras]
    if not all(on_hub(lora['name']) for lora in loras):
        raise StoreError(f'{file} was made with LoRAs: give them ({", ".join(names)})')
    return tuple(names)


def _stages_of_hub(stages: list[dict[str, Any]], file: Path) -> tuple[str, ...]:
    """A run's further stages as `GenerationJob.stages`, from a store's records.

    Raises:
        StoreError: If they were folders.
    """
    if any('/' not in stage['pipeline'] for stage in stages):
        raise StoreError(f'{file} names further stages that were folders: give them')
    return tuple(f'{stage["pipeline"]}@{stage["revision"]}' for stage in stages)


def absolute_place(place: str) -> str:
    """Return a path that holds from anywhere; an address, which does, as it is."""
    return place if is_address(place) else str(Path(place).absolute())
