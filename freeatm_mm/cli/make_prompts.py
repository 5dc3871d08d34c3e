"""Make a file of prompts, each with the span of every noun in it, for freeatm generate.

From ImageNet's classes by a grammar (no network, no model), from the captions of a data set, or
from prompts that a language model rewrites. The same command
continues a stopped run. docs/prompts.md shows each command with its output.
"""

from __future__ import annotations

import argparse
import re
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from freeatm_mm.cli._effects import named_options, refuse_idle
from freeatm_mm.cli._numbers import number, whole
from freeatm_mm.cli._paths import path_here, path_to_read
from freeatm_mm.errors import RunError, tool
from freeatm_mm.progress import progress_bar
from freeatm_mm.prompts import read_prompts
from freeatm_mm.prompts.captions import READERS, caption_batches
from freeatm_mm.prompts.grammar import PromptGrammar, photo_prompts
from freeatm_mm.prompts.imagenet import select_classes
from freeatm_mm.prompts.journal import Batch, Report, SeenTexts, check_target, write_batches
from freeatm_mm.prompts.language_models import LocalModel, ServerModel
from freeatm_mm.prompts.nouns import NounFinder, SpacyTagger, TextBlobTagger
from freeatm_mm.prompts.reading import read_text
from freeatm_mm.prompts.rewrite import Checks, Prices, read_words, rewrite_batches, unsafe_words
from freeatm_mm.prompts.tables import source_state

# Items in one line of the journal: what a killed run may have to do again.
BATCH = 4000


def make_imagenet(options: argparse.Namespace) -> Report:
    """Sentences about ImageNet's classes, or "a photo of [class]"."""
    classes = select_classes(options.under)
    grammar = PromptGrammar(classes, options.seed, name=options.name or options.source)

    def batches(read: int, seen: SeenTexts, counts: Counter) -> Iterable[Batch]:
        for start in range(read, options.count, BATCH):
            stop = min(start + BATCH, options.count)
            if options.source == 'photo':
                records = tuple(photo_prompts(classes, start, stop, grammar.name))
            else:
                records = tuple(grammar.records(start, stop))
            yield Batch(stop - start, records, {'nouns': sum(len(r.nouns) for r in records)})

    report = run(options, batches, ('count', 'seed', 'under', 'name'), options.count)
    if options.source == 'imagenet':
        report.counts['repeated sentences'] = grammar.repeats(options.count)
    report.counts['classes'] = len(classes)
    return report


def make_captions(options: argparse.Namespace) -> Report:
    """The captions of a data set, with their nouns."""
    tagger = SpacyTagger(options.spacy) if options.spacy else TextBlobTagger()
    finder = NounFinder(tagger, options.concrete, not options.single_words)
    captions = READERS[options.source](options.file, options.name or None)

    def batches(read: int, seen: SeenTexts, counts: Counter) -> Iterable[Batch]:
        unreadable = sum(
            int(number) for name, number in counts.items() if name.startswith('unreadable: ')
        )
        return caption_batches(
            captions,
            finder,
            skip=read,
            seen=seen,
            max_words=options.max_words,
            keep_without_nouns=options.keep_without_nouns,
            max_unreadable=options.max_unreadable,
            unreadable=unreadable,
        )

    return run(
        options,
        batches,
        ('file', 'name', 'spacy', 'concrete', 'single_words', 'max_words', 'keep_without_nouns'),
        skip_doubled=True,
    )


def rewrite(options: argparse.Namespace) -> Report:
    """Prompts rewritten by a server or a local model."""
    # What can be looked at is looked at before a model is loaded or paid.
    check_target(options.out, options.overwrite)
    for _ in read_prompts(options.file):
        pass
    forbidden = unsafe_words()
    for path in options.forbid:
        forbidden |= read_words(read_text(path, 'word list'))
    checks = Checks(options.min_words, options.max_words, forbidden)
    model: LocalModel | ServerModel
    if options.local:
        model = LocalModel(
            options.local,
            options.device,
            options.dtype,
            options.batch_size,
            options.temperature,
            options.max_tokens or 80,
            options.seed or 0,
        )
    else:
        model = ServerModel(
            options.model,
            options.server,
            workers=options.workers,
            retries=options.retries,
            timeout=options.timeout,
            temperature=options.temperature,
            max_tokens=options.max_tokens or 1500,
            seed=options.seed,
        )
    per_request = options.per_request or (1 if options.local else 10)
    prices = Prices(options.price_in, options.price_out, options.budget)

    def batches(read: int, seen: SeenTexts, counts: Counter) -> Iterable[Batch]:
        return rewrite_batches(
            read_prompts(options.file),
            model,
            seen,
            skip=read,
            per_request=per_request,
            checks=checks,
            prices=prices,
            spent=counts.get('dollars', 0.0),
        )

    return run(
        options,
        batches,
        (
            'file',
            'model',
            'local',
            'temperature',
            'max_tokens',
            'seed',
            'per_request',
            'batch_size',
            'min_words',
            'max_words',
            'forbid',
        ),
    )


def run(
    options: argparse.Namespace,
    batches: object,
    names: tuple[str, ...],
    total: int | None = None,
    skip_doubled: bool = False,
) -> Report:
    """Write the batches with a progress bar; ``names`` are the options that decide the result."""
    settings = {'source': options.source}
    for name in names:
        value = getattr(options, name)
        settings[name] = (
            [str(item) for item in value]
            if isinstance(value, list)
            else str(value)
            if isinstance(value, Path)
            else value
        )
    if getattr(options, 'file', None) and options.file.exists():
        settings['content of the source'] = source_state(options.file)

    def shown(read: int, seen: SeenTexts, counts: Counter) -> Iterable[Batch]:
        with progress_bar(total=total, initial=read, unit=' read', disable=options.quiet) as bar:
            for batch in batches(read, seen, counts):  # type: ignore[operator]
                for message in batch.messages:
                    tqdm.write(message, file=sys.stderr)
                yield batch
                bar.update(batch.read)

    return write_batches(options.out, settings, shown, options.overwrite, skip_doubled)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sources = parser.add_subparsers(
        dest='source', required=True, metavar='SOURCE', help='each has its own --help'
    )

    def add_source(
        name: str, text: str, file: str | None, action: object
    ) -> argparse.ArgumentParser:
        source = sources.add_parser(name, help=text, description=text)
        source.set_defaults(action=action)
        if file:
            source.add_argument('file', type=path_to_read, help=file)
        source.add_argument('out', type=path_here, help='the JSON Lines file to write')
        source.add_argument('--overwrite', action='store_true', help='replace a finished file')
        source.add_argument('--quiet', action='store_true', help='no progress bar')
        return source

    for name, text in (
        ('imagenet', "sentences about ImageNet's classes by the paper's templates"),
        ('photo', '"a photo of [class]", the plain prompt of Table 6'),
    ):
        source = add_source(name, text, None, make_imagenet)
        source.add_argument(
            '--count',
            type=whole(1, 10**9),
            default=1_200_000,
            help="prompts to make (default: 1,200,000, the paper's)",
        )
        source.add_argument(
            '--seed',
            type=whole(-(2**63), 2**63 - 1),
            default=0,
            help='another seed, other sentences',
        )
        source.add_argument(
            '--under',
            metavar='LEVEL',
            help="only classes below this level of WordNet's hierarchy, e.g. dog",
        )
        source.add_argument('--name', help='what ids begin with (default: the source)')

    for name, reader in READERS.items():
        source = add_source(name, reader.text, reader.help, make_captions)
        source.add_argument(
            '--concrete', action='store_true', help='only nouns that name what one can see'
        )
        source.add_argument(
            '--single-words',
            action='store_true',
            help='do not join compounds such as "tennis racket"',
        )
        source.add_argument(
            '--spacy', metavar='MODEL', help='tag with this spaCy model instead of textblob'
        )
        source.add_argument(
            '--max-words',
            type=whole(1, 10_000),
            default=60,
            help='leave longer captions out (default: 60)',
        )
        source.add_argument(
            '--keep-without-nouns',
            action='store_true',
            help='keep captions in which no noun is found',
        )
        source.add_argument(
            '--max-unreadable',
            type=number(0, 1),
            default=0.01,
            metavar='SHARE',
            help="stop if a larger share of the captions can't be read; 20 are "
            'always allowed (default: 0.01)',
        )
        source.add_argument('--name', help="what ids begin with (default: the data set's name)")

    source = add_source(
        'rewrite',
        'prompts rewritten by a language model, each answer checked',
        'a file of prompts',
        rewrite,
    )
    which = source.add_mutually_exclusive_group(required=True)
    which.add_argument('--model', help='a model of the server, e.g. gpt-3.5-turbo')
    which.add_argument('--local', metavar='FOLDER', help='a causal language model of transformers')
    source.add_argument(
        '--server',
        metavar='URL',
        help='an OpenAI-compatible server, e.g. http://localhost:11434/v1 '
        '(default: OpenAI; the key is read from OPENAI_API_KEY)',
    )
    source.add_argument(
        '--workers', type=whole(1, 1000), default=8, help='requests at a time (default: 8)'
    )
    source.add_argument(
        '--retries',
        type=whole(0, 100),
        default=8,
        help='times a failed request is sent again (default: 8)',
    )
    source.add_argument(
        '--timeout',
        type=number(0.1, 86_400),
        default=120,
        help='seconds for an answer (default: 120)',
    )
    source.add_argument(
        '--per-request',
        type=whole(1, 200),
        help='prompts per request (default: 10; 1 with --local)',
    )
    source.add_argument(
        '--temperature', type=number(0, 10), default=1.0, help='of sampling (default: 1)'
    )
    source.add_argument(
        '--max-tokens',
        type=whole(1, 1_000_000),
        help='of an answer (default: 1500; 80 with --local)',
    )
    source.add_argument('--seed', type=whole(-(2**63), 2**63 - 1), help='for sampling')
    source.add_argument(
        '--min-words', type=whole(1, 1000), default=4, help='of a prompt (default: 4)'
    )
    source.add_argument(
        '--max-words', type=whole(1, 1000), default=40, help='of a prompt (default: 40)'
    )
    source.add_argument(
        '--forbid',
        type=path_to_read,
        action='append',
        default=[],
        metavar='FILE',
        help='file of further words and phrases that an answer may not bring in, one per line; '
        'those that its template has are allowed',
    )
    source.add_argument(
        '--price-in', type=number(0, 1e6), default=0.0, help='dollars for a million tokens sent'
    )
    source.add_argument(
        '--price-out',
        type=number(0, 1e6),
        default=0.0,
        help='dollars for a million tokens received',
    )
    source.add_argument('--budget', type=number(0, 1e9), help='stop after this many dollars')
    source.add_argument('--device', default='cpu', help='of the local model (default: cpu)')
    source.add_argument('--dtype', default='auto', help='of the local model (default: auto)')
    source.add_argument(
        '--batch-size',
        type=whole(1, 4096),
        default=8,
        help='requests at a time of the local model (default: 8)',
    )
    options = parser.parse_args(argv)
    named = named_options(options, parser, argv, of=sources.choices[options.source])
    refuse_idle(
        named, options.source == 'photo', 'on photo, which has one sentence a class', 'seed'
    )
    if options.source == 'rewrite':
        local = options.local is not None
        refuse_idle(named, local, 'with --local', 'server', 'workers', 'retries', 'timeout')
        refuse_idle(named, not local, 'without --local', 'device', 'dtype', 'batch_size')
        still = local and options.temperature == 0
        refuse_idle(named, still, 'with --local at --temperature 0', 'seed')
    if vars(options).get('min_words', 0) > vars(options).get('max_words', 0):
        parser.error(
            f'--min-words {options.min_words} is more than --max-words {options.max_words}'
        )
    priced = getattr(options, 'price_in', 0) + getattr(options, 'price_out', 0) > 0
    if getattr(options, 'budget', None) is not None and not priced:
        parser.error('--budget needs --price-in and --price-out, to know what is spent')
    if getattr(options, 'name', None) and not re.fullmatch('[A-Za-z0-9_-]{1,40}', options.name):
        parser.error(f'--name must be 1 to 40 letters, digits, "-" or "_", got {options.name!r}')
    return options


@tool(resumes=True, told_to_end=True)
def main(argv: Sequence[str] | None = None) -> int:
    """Make the file of prompts."""
    options = parse_args(argv)
    try:
        print(options.action(options))
    except sqlite3.Error as error:  # of the texts seen, which are kept in a file beside
        raise RunError(f"the texts seen so far can't be kept: {error}") from None
    return 0
