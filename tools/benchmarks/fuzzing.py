"""Damaging files in every way that can be thought of, and looking at what their readers do.

A `Target` makes sound files in a folder and reads them. Each mutation changes one file, and
the reader must then refuse it in one sentence, or give what it gave before. What must not happen:

* a hang: no answer within the time limit;
* a stray exception: one that is no `freeatm_mm.errors.InputError`, or no single sentence;
* a silent difference: other content, and no word about it.

Another reader is put to this test by a few lines, here or in any module that `fuzz.py` is told to
import::

    @target('prompts', files=('*.jsonl',))
    def prompts(folder):                       # write what is sound, and return the reader
        write_prompts(folder / 'prompts.jsonl', RECORDS)
        return lambda folder: list(read_prompts(folder / 'prompts.jsonl'))
"""

from __future__ import annotations

import collections
import itertools
import json
import os
import random
import shutil
import signal
import tarfile
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from freeatm_mm.errors import InputError

__all__ = [
    'FAULTS',
    'TARGETS',
    'Mutation',
    'Report',
    'Target',
    'all_bits',
    'fuzz',
    'random_mutations',
    'target',
]

#: Outcomes that must not happen.
FAULTS = ('hang', 'stray exception', 'silent difference')

Reader = Callable[[Path], Any]


class Mutation(NamedTuple):
    """A way to damage a file.

    Args:
        name: What it does, for counts and messages.
        apply: Called with the file.
    """

    name: str
    apply: Callable[[Path], Any]


@dataclass(frozen=True)
class Target:
    """A reader to test.

    Args:
        name: What it is called.
        make: Writes sound files into an empty folder and returns the reader, which is called with a
            folder that holds a damaged copy, and returns what can be compared by ``==``.
        files: Patterns of the files to damage.
        errors: What the reader may raise.
        forge: Called with the folder after half of the random mutations: makes checksums fit, as an
            attacker would. What is read may then differ, but no hang and no stray exception.
    """

    name: str
    make: Callable[[Path], Reader]
    files: tuple[str, ...] = ('*',)
    errors: tuple[type[Exception], ...] = (InputError,)
    forge: Callable[[Path], None] | None = None


#: Name -> target.
TARGETS: dict[str, Target] = {}


def target(name: str, **options: Any) -> Callable[[Callable[[Path], Reader]], Callable]:
    """A decorator that registers a function as a target's ``make``."""

    def register(make: Callable[[Path], Reader]) -> Callable[[Path], Reader]:
        TARGETS[name] = Target(name, make, **options)
        return make

    return register


@dataclass
class Report:
    """What became of the mutations.

    Args:
        target: Name of the target.
        outcomes: ``'refused'``, ``'same content'``, ``'forged'`` or one of `FAULTS` -> how
            many.
        faults: The faults, one line each.
    """

    target: str
    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rest = ', '.join(
            f'{count} {outcome}'
            for outcome, count in self.outcomes.most_common()
            if outcome not in FAULTS
        )
        bad = ', '.join(f'{self.outcomes[fault]} {fault}s' for fault in FAULTS)
        return f'{self.target}: {self.outcomes.total()} mutations: {bad} ({rest})'


def fuzz(
    chosen: Target,
    mutations: Callable[[Path], Iterator[Mutation]],
    *,
    seconds: float = 10.0,
    report: Report | None = None,
) -> Report:
    """Apply each mutation to a sound copy and see what the reader does.

    Args:
        chosen: The target.
        mutations: Called with each file to damage, while it is sound.
        seconds: Time limit of one reading.
        report: Goes on counting in this one.
    """
    report = report or Report(chosen.name)
    with tempfile.TemporaryDirectory() as scratch:
        sound, folder = Path(scratch) / 'sound', Path(scratch) / 'damaged'
        sound.mkdir()
        read = chosen.make(sound)
        shutil.copytree(sound, folder)
        expected = read(folder)
        names = sorted({path.name for pattern in chosen.files for path in sound.glob(pattern)})
        for name in names:
            for number, mutation in enumerate(mutations(sound / name)):
                mutation.apply(folder / name)
                forged = bool(chosen.forge and number % 2 and mutation.name != 'bit')
                if forged:
                    chosen.forge(folder)
                outcome, what = _outcome(chosen, read, folder, expected, seconds)
                if forged and outcome in ('silent difference', 'same content'):
                    outcome = 'forged'
                report.outcomes[outcome] += 1
                if outcome in FAULTS and len(report.faults) < 50:
                    report.faults.append(f'{outcome}: {name}, {mutation.name}: {what}')
                _restore(sound, folder, None if forged else name)
    return report


def _outcome(
    chosen: Target, read: Reader, folder: Path, expected: Any, seconds: float
) -> tuple[str, str]:
    try:
        with _alarm(seconds):
            found = read(folder)
    except _Hang as error:
        place = traceback.extract_tb(error.__traceback__)[-2]
        return 'hang', f'in {Path(place.filename).name}, line {place.lineno}'
    except chosen.errors as error:
        message = str(error)
        if '\n' in message or len(message) > 2000 or not message:
            return 'stray exception', f'no single sentence: {message[:200]!r}'
        return 'refused', message
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return (
            'stray exception',
            f'{error!r:.200} in {Path(place.filename).name}, line {place.lineno}',
        )
    return ('same content', '') if found == expected else ('silent difference', '')


class _Hang(BaseException):
    """The time is up; no handler of ordinary errors may catch it."""


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise _Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _restore(sound: Path, folder: Path, name: str | None) -> None:
    """Make the damaged file, or all of them, sound again."""
    for path in [folder / name] if name else list(folder.iterdir()):
        _remove(path)
    for source in [sound / name] if name else sound.iterdir():
        shutil.copyfile(source, folder / source.name)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# --- mutations --------------------------------------------------------------------------------


def all_bits(limit: int | None = None, seed: int = 0) -> Callable[[Path], Iterator[Mutation]]:
    """Every single bit of a file turned, or ``limit`` of them at random."""

    def mutations(path: Path) -> Iterator[Mutation]:
        content = path.read_bytes()
        places: Sequence[int] = range(8 * len(content))
        if limit is not None and limit < len(places):
            places = random.Random(f'{seed}/{path.name}').sample(places, limit)
        for place in places:
            yield Mutation(
                'bit', lambda file, place=place: file.write_bytes(_flipped(content, place))
            )

    return mutations


def random_mutations(count: int, seed: int = 0) -> Callable[[Path], Iterator[Mutation]]:
    """``count`` mutations of a file: of its bytes, of JSON and tar headers in it, of the file."""

    def mutations(path: Path) -> Iterator[Mutation]:
        content = path.read_bytes()
        dice = random.Random(f'{seed}/{path.name}')
        kinds: list[Callable[[random.Random, bytes], bytes]] = list(_BYTES.values())
        names = list(_BYTES)
        if path.suffix == '.json':
            names, kinds = names + ['json'] * 30, kinds + [_json_mutation] * 30
        if path.suffix == '.tar':
            names, kinds = names + ['tar header'] * 15, kinds + [_header_mutation] * 15
        places = itertools.cycle(_PLACES.items())
        for number in range(count):
            if number % 20 == 0:
                name, place = next(places)
                yield Mutation(name, place)
                continue
            which = dice.randrange(len(kinds))
            changed = kinds[which](dice, content)
            yield Mutation(names[which], lambda file, changed=changed: file.write_bytes(changed))

    return mutations


def _flipped(content: bytes, place: int) -> bytes:
    changed = bytearray(content)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def _span(dice: random.Random, content: bytes) -> tuple[int, int]:
    first = dice.randrange(len(content) + 1)
    return first, min(len(content), first + dice.choice((1, 2, 8, 64, 512, 4096)))


def _without(dice: random.Random, content: bytes) -> bytes:
    first, last = _span(dice, content)
    return content[:first] + content[last:]


def _doubled(dice: random.Random, content: bytes) -> bytes:
    first, last = _span(dice, content)
    return content[:last] + content[first:]


def _overwritten(dice: random.Random, content: bytes) -> bytes:
    first, last = _span(dice, content)
    filling = dice.choice((b'\0', b'\xff', b' ', None))
    new = dice.randbytes(last - first) if filling is None else filling * (last - first)
    return content[:first] + new + content[last:]


def _exchanged(dice: random.Random, content: bytes) -> bytes:
    size = dice.choice((8, 64, 128, 512, 1024))
    blocks = [content[first : first + size] for first in range(0, len(content), size)]
    one, two = dice.randrange(len(blocks)), dice.randrange(len(blocks))
    blocks[one], blocks[two] = blocks[two], blocks[one]
    return b''.join(blocks)


_BYTES: dict[str, Callable[[random.Random, bytes], bytes]] = {
    'bit flip': lambda dice, content: _flipped(content, dice.randrange(8 * len(content))),
    'several bit flips': lambda dice, content: _flipped(
        _flipped(content, dice.randrange(8 * len(content))), dice.randrange(8 * len(content))
    ),
    'cut off': lambda dice, content: content[: dice.randrange(len(content))],
    'without a part': _without,
    'a part twice': _doubled,
    'overwritten': _overwritten,
    'exchanged': _exchanged,
    'more at the end': lambda dice, content: content + dice.randbytes(dice.choice((1, 512, 9999))),
    'more at the start': lambda dice, content: (
        dice.choice((b'\xef\xbb\xbf', b'\xff\xfe', b'\0', b' ', b'\n')) + content
    ),
}


def _huge(file: Path) -> None:
    with file.open('wb') as opened:
        opened.truncate(1 << 40)  # takes no room on the disk


def _replaced(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def replace(file: Path) -> None:
        file.unlink()
        make(file)

    return replace


_PLACES: dict[str, Callable[[Path], Any]] = {
    'missing': _replaced(lambda file: None),
    'empty': lambda file: file.write_bytes(b''),
    'a folder': _replaced(os.mkdir),
    'a pipe': _replaced(os.mkfifo),
    'endless': _replaced(lambda file: file.symlink_to('/dev/zero')),
    'a link to itself': _replaced(lambda file: file.symlink_to(file)),
    'a link to nowhere': _replaced(lambda file: file.symlink_to('nowhere')),
    'huge': _huge,
}

_VALUES = (
    'null',
    'true',
    '0',
    '-1',
    '1',
    '1.5',
    '1e999',
    '-1e999',
    'NaN',
    'Infinity',
    '""',
    '[]',
    '{}',
    '[[]]',
    '"x"',
    '"../../x"',
    '"\\ud800"',
    '9' * 30,
    '9' * 5000,
    '[' * 5000,
    '[' * 200 + ']' * 200,
    '{"a":' * 5000,
    '"\\u0000"',
    '18446744073709551616',
)


def _json_mutation(dice: random.Random, content: bytes) -> bytes:
    """Another value, a field less, a field twice or another name, somewhere in the JSON."""
    value = json.loads(content)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, inner in items:
            places.append((node, key))
            if isinstance(inner, (dict, list)):
                walk(inner)

    walk(value)
    node, key = dice.choice(places)
    kind = dice.choice(('value', 'value', 'value', 'remove', 'twice', 'rename', 'add', 'copy'))
    mark = '@@mark@@'
    if kind == 'remove':
        del node[key]
    elif kind == 'rename' and isinstance(node, dict):
        node[f'{key}x'] = node.pop(key)
    elif kind == 'twice' and isinstance(node, dict):
        node[mark] = node[key]
        return json.dumps(value).replace(json.dumps(mark), json.dumps(key)).encode()
    elif kind == 'add' and isinstance(node, dict):
        node['something'] = 1
    elif kind == 'copy':
        other, place = dice.choice(places)
        node[key] = json.loads(json.dumps(other[place]))
    else:
        node[key] = mark
        return json.dumps(value).replace(json.dumps(mark), dice.choice(_VALUES)).encode()
    return json.dumps(value).encode()


def _header_mutation(dice: random.Random, content: bytes) -> bytes:
    """A field of a tar header changed, with a checksum that fits."""
    headers = [
        place
        for place in range(0, len(content), 512)
        if content[place + 257 : place + 262] == b'ustar'
    ]
    place = dice.choice(headers)
    info = tarfile.TarInfo.frombuf(content[place : place + 512], 'utf-8', 'strict')
    field_name, values = dice.choice(
        (
            ('name', ('../../x.json', '/etc/x.json', 'x.pkl', 'a/b.json', 'y.json', 'z.masks.png')),
            ('size', (0, 1, info.size + 1, info.size + 512, 1 << 32, (1 << 33) - 1)),
            (
                'type',
                (
                    tarfile.SYMTYPE,
                    tarfile.LNKTYPE,
                    tarfile.FIFOTYPE,
                    tarfile.DIRTYPE,
                    tarfile.CHRTYPE,
                    tarfile.XHDTYPE,
                    tarfile.GNUTYPE_LONGNAME,
                    b'Z',
                ),
            ),
            ('linkname', ('/etc/passwd', '../x')),
            ('mode', (0, 0o7777)),
            ('mtime', (1, 1 << 30)),
        )
    )
    setattr(info, field_name, dice.choice(values))
    return content[:place] + info.tobuf(tarfile.GNU_FORMAT)[:512] + content[place + 512 :]


# --- targets ----------------------------------------------------------------------------------


def _write_store(folder: Path) -> None:
    from freeatm_mm.prompts import Noun
    from freeatm_mm.store import Sample, write_store

    rng = np.random.default_rng(0)

    def sample(number: int) -> Sample:
        words = ('bird', 'sand', 'lamp')[: number % 3]
        caption = f'{number}: ' + ' '.join(words)
        nouns = tuple(
            Noun(word, caption.index(word), caption.index(word) + 4, word) for word in words
        )
        image = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
        return Sample.from_image(
            f'k{number}',
            image,
            image_format='png',
            caption=caption,
            nouns=nouns,
            masks=rng.integers(0, 256, (len(nouns), 3, 3), np.uint8),
            scales=rng.random((len(nouns), 2), np.float32),
            meta={'seed': number, 'share': 0.25},
        )

    write_store(folder, map(sample, range(3)), 2, {'steps': 5, 'num_samples': 3, 'name': 'é'})


def _content(folder: Path) -> list[Any]:
    """All that a store gives to those who read it."""
    from freeatm_mm.store import Store

    store = Store(folder)
    samples = [(*_fields(sample), sample.image.tobytes()) for sample in store]
    return [len(store), store.config, samples, [store.read(n).info for n in range(len(store))]]


def _fields(sample: Any) -> tuple:
    """A sample as values that compare by ``==``."""
    return (
        sample.key,
        sample.image_bytes,
        sample.image_format,
        sample.caption,
        sample.nouns,
        sample.masks.tobytes(),
        sample.masks.shape,
        sample.scales.tobytes(),
        sample.meta,
    )


def _forge(folder: Path) -> None:
    """Make what ``store.json`` records of the files fit them, as far as it can be read."""
    import hashlib

    from freeatm_mm.store.layout import dump_manifest

    try:
        manifest = json.loads((folder / 'store.json').read_bytes())
        for entry in manifest['shards']:
            for ending, prefix in (('.tar', ''), ('.index.npy', 'index_')):
                path = folder / f'{entry["name"]}{ending}'
                if path.is_file() and path.stat().st_size < 1 << 20:
                    content = path.read_bytes()
                    entry[f'{prefix}bytes'] = len(content)
                    entry[f'{prefix}sha256'] = hashlib.sha256(content).hexdigest()
        manifest['bytes'] = sum(entry['bytes'] for entry in manifest['shards'])
        (folder / 'store.json').write_bytes(dump_manifest(manifest))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass  # what can't be read can't be forged


_STORE_FILES = ('shard-000000.tar', '*.index.npy', 'store.json')


@target('store', files=_STORE_FILES, forge=_forge)
def _store(folder: Path) -> Reader:
    """Every sample read, decoded and compared."""
    _write_store(folder)
    return _content


@target('verify', files=(*_STORE_FILES, 'shard-000000.json'), forge=_forge)
def _verify(folder: Path) -> Reader:
    """A store that is said to be sound, though it or what is recorded of it says other things."""
    from freeatm_mm.store import verify_store

    _write_store(folder)

    def read(folder: Path) -> Any:
        problems = list(verify_store(folder))
        if problems:
            raise InputError(str(problems[0]))
        return _content(folder), [
            json.loads(path.read_text('utf-8-sig')) for path in sorted(folder.glob('*.json'))
        ]

    return read


@target('repair', files=(*_STORE_FILES, 'shard-000000.json'))
def _repair(folder: Path) -> Reader:
    """A store that is repaired without its pipeline, and then verified."""
    from freeatm_mm.store import repair_store, verify_store

    _write_store(folder)

    def read(folder: Path) -> Any:
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch) / 'copy'
            shutil.copytree(folder, copy, symlinks=True, copy_function=_copy_any)
            repair_store(copy)
            for path in copy.glob('store.json.broken'):
                _remove(path)
            problems = list(verify_store(copy))
            if problems:
                raise InputError(str(problems[0]))
            return _content(copy)

    return read


def _copy_any(source: str, target_path: str) -> None:
    if Path(source).is_symlink() or Path(source).is_file():
        if Path(source).is_file() and Path(source).stat().st_size > 1 << 30:
            _huge(Path(target_path))
        else:
            shutil.copyfile(source, target_path, follow_symlinks=False)
    else:
        os.mkfifo(target_path)


@target('edit', files=_STORE_FILES, forge=_forge)
def _edit(folder: Path) -> Reader:
    """A store that is filtered, merged and exported."""
    from freeatm_mm.store import Store
    from freeatm_mm.store.edit import filter_store, merge_stores, parse_condition
    from freeatm_mm.store.export import export_mmseg

    _write_store(folder)

    def read(folder: Path) -> Any:
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch)
            filter_store(folder, out / 'few', [parse_condition('meta.seed!=0')])
            merge_stores([folder], out / 'all')
            report = export_mmseg(folder, out / 'mmseg')
            return (
                [_fields(sample) for name in ('few', 'all') for sample in Store(out / name)],
                str(report),
            )

    return read


@target('json', files=('*.json',))
def _json(folder: Path) -> Reader:
    """The reader of JSON that all others use; sound changes of a text are no differences here."""
    from freeatm_mm.files import check_json, read_json

    shape = {'name': str, 'sizes': [int], 'parts': {'share': float, 'none': None}}
    (folder / 'file.json').write_text(
        json.dumps({'name': 'a', 'sizes': [1, 2], 'parts': {'share': 0.5, 'none': None}})
    )

    def read(folder: Path) -> Any:
        check_json(read_json(folder / 'file.json'), shape, 'file.json')
        return None

    return read


def _in_a_sentence(read: Reader) -> Reader:
    """Turn what some readers raise into an `InputError`: exactly these types, not their kin."""

    def reader(folder: Path) -> Any:
        try:
            return read(folder)
        except (ValueError, FileNotFoundError) as error:
            if type(error) in (ValueError, FileNotFoundError):
                raise InputError(str(error)) from None
            raise

    return reader


@target('prompts', files=('*.jsonl',))
def _prompts(folder: Path) -> Reader:
    """Prompt records; text has no checksum, so only that each span is its noun is compared."""
    from freeatm_mm.prompts import Noun, PromptRecord, read_prompts, write_prompts

    write_prompts(
        folder / 'prompts.jsonl',
        [
            PromptRecord(f'{number}', f'a {word} here', (Noun(word, 2, 2 + len(word)),), 'fuzz')
            for number, word in enumerate(('dog', 'vögel', '狗', 'ball'))
        ],
    )

    def read(folder: Path) -> bool:
        return all(
            record.prompt[noun.start : noun.end] == noun.text
            for record in read_prompts(folder / 'prompts.jsonl')
            for noun in record.nouns
        )

    return _in_a_sentence(read)


@target('captions', files=('*',))
def _captions(folder: Path) -> Reader:
    """Captions as they are distributed, in four formats; rows that can't be read are counted."""
    import gzip

    from freeatm_mm.prompts.captions import read_captions

    rows = [{'id': n, 'caption': f'a {w} &amp; a cat'} for n, w in enumerate(('dog', 'ball'))]
    (folder / 'coco.json').write_text(json.dumps({'images': [], 'annotations': rows}))
    (folder / 'rows.jsonl').write_text('\n'.join(map(json.dumps, rows)) + '\n')
    (folder / 'rows.tsv').write_text('caption\turl\n' + 'a dog\thttp://a.b/c.jpg\n' * 3)
    (folder / 'rows.csv.gz').write_bytes(gzip.compress(b'url,caption\nx,"a, dog"\ny,a cat\n'))

    def read(folder: Path) -> None:
        for name in ('coco.json', 'rows.jsonl', 'rows.tsv', 'rows.csv.gz'):
            for _ in itertools.islice(read_captions(folder / name), 10_000):
                pass

    return _in_a_sentence(read)


@target('checkpoint', files=('*.pth', '*.safetensors'))
def _checkpoint(folder: Path) -> Reader:
    """Checkpoints of torch, before and after 1.6, and safetensors; numbers have no checksum."""
    import torch
    from safetensors.torch import save_file

    from freeatm_mm.checkpoints import load_weights, read_state

    state = {'a.weight': torch.ones(2, 3), 'a.bias': torch.zeros(3)}
    content = {'state_dict': state, 'meta': {'epoch': 1, 'iter': 10}, 'epoch': 1}
    torch.save(content, folder / 'new.pth')
    torch.save(content, folder / 'old.pth', _use_new_zipfile_serialization=False)
    save_file(state, folder / 'weights.safetensors')

    def read(folder: Path) -> None:
        for name in ('new.pth', 'old.pth'):
            read_state(folder / name)
        load_weights(folder / 'weights.safetensors')

    return read


@target('answers', files=('*.json',))
def _answers(folder: Path) -> Reader:
    """What a language-model server answers; what can't be read is an answer without text."""
    from freeatm_mm.prompts.answers import read_sentences
    from freeatm_mm.prompts.language_models import read_completion

    text = '<think>1. no</think>Sure!\n1. A dog runs.\n2. "A cat sits."\n'
    message = {'role': 'assistant', 'content': text}
    (folder / 'body.json').write_text(
        json.dumps({'choices': [{'message': message, 'finish_reason': 'stop'}], 'usage': {}})
    )

    def read(folder: Path) -> bool:
        path = folder / 'body.json'
        if not path.is_file() or path.stat().st_size > 1 << 22:  # the client reads no more
            raise InputError('no answer')
        answer = read_completion(path.read_bytes())
        sentences = read_sentences(answer.text, 2) if answer.text else [None, None]
        return len(sentences) == 2

    return read


@target('pipeline', files=('model_index.json',))
def _pipeline(folder: Path) -> Reader:
    """A pipeline's folder, looked through before anything of it is loaded."""
    import diffusers

    from freeatm_mm.generation.folders import check_folder

    generator = Path(__file__).resolve().parents[2] / 'weights' / 'miniature-generator'
    shutil.copytree(generator, folder, dirs_exist_ok=True)

    def read(folder: Path) -> None:
        check_folder(diffusers, folder)

    return _in_a_sentence(read)


@target('pictures', files=('a.*',))
def _pictures(folder: Path) -> Reader:
    """Pictures of others in every format that is decoded; pixels have no checksum."""
    from freeatm_mm.files import read_bytes
    from freeatm_mm.store.pictures import decode_picture

    picture = Image.fromarray(np.arange(24 * 16 * 3, dtype=np.uint8).reshape(16, 24, 3))
    for ending in ('bmp', 'gif', 'jpg', 'png', 'ppm', 'tif', 'webp'):
        picture.save(folder / f'a.{ending}')
    names = sorted(path.name for path in folder.iterdir())

    def read(folder: Path) -> None:
        for name in names:
            decode_picture(read_bytes(folder / name, 1 << 22))

    return read


@target('import', files=('instances.json', 'sam.json', 'classes.txt', 'a.*'))
def _import(folder: Path) -> Reader:
    """Own images with own masks in four formats; masks have no checksum."""
    from freeatm_mm.store.importing import READERS, ImportReport, import_samples

    mask = np.zeros((16, 24), np.uint8)
    mask[3:9, 4:20] = 1
    Image.fromarray(np.repeat(mask[..., None] * 99, 3, 2)).save(folder / 'a.jpg')
    Image.fromarray(mask).save(folder / 'a.png')
    (folder / 'a').mkdir()
    Image.fromarray(mask * 255).save(folder / 'a' / 'dog.png')
    (folder / 'classes.txt').write_text('background\ndog\n')
    runs = {'size': [16, 24], 'counts': [50, 20, 314]}
    entries = [
        {'image_id': 1, 'category_id': 1, 'segmentation': segmentation}
        for segmentation in ([[4.0, 3, 20, 3, 20, 9]], runs)
    ]
    image = {'file_name': 'a.jpg', 'width': 24, 'height': 16}
    names = [{'id': 1, 'name': 'dog'}]
    (folder / 'instances.json').write_text(
        json.dumps({'images': [{'id': 1, **image}], 'annotations': entries, 'categories': names})
    )
    (folder / 'sam.json').write_text(
        json.dumps({'image': image, 'annotations': [{'segmentation': runs}]})
    )

    def read(folder: Path) -> None:
        refused = None
        for name, reader in READERS.items():
            report = ImportReport()
            masks = folder / 'instances.json' if name == 'coco' else folder
            try:
                pictures = reader(folder, masks, report, 'thing')
                for sample in itertools.islice(import_samples(pictures, report, max_bad=99), 99):
                    assert sample.image.size[0] > 0
            except InputError as error:
                refused = error
        if refused:
            raise refused

    return read


@target('images', files=('metadata.jsonl', 'captions.json', 'images.tar', 'a.txt', 'a.json'))
def _images(folder: Path) -> Reader:
    """Images with captions to add masks to: tables, COCO's captions, tars, texts beside them."""
    import io

    from freeatm_mm.generation import images
    from freeatm_mm.store.pictures import decode_picture

    picture = io.BytesIO()
    Image.new('RGB', (24, 16), 'red').save(picture, 'PNG')
    (folder / 'a.png').write_bytes(picture.getvalue())
    row = {'file_name': 'a.png', 'text': 'a dog', 'nouns': ['dog']}
    (folder / 'metadata.jsonl').write_text(json.dumps(row) + '\n')
    (folder / 'captions.json').write_text(
        json.dumps(
            {
                'images': [{'id': 9, 'file_name': 'a.png'}],
                'annotations': [{'id': 1, 'image_id': 9, 'caption': 'a dog'}],
            }
        )
    )
    (folder / 'a.txt').write_text('a dog')
    (folder / 'a.json').write_text(json.dumps({'caption': 'a dog', 'nouns': ['dog']}))
    with tarfile.open(folder / 'images.tar', 'w') as archive:
        for name in ('a.png', 'a.txt', 'a.json'):
            archive.add(folder / name, name)

    def read(folder: Path) -> None:
        refused = None
        for source, captions, listing in (
            (folder / 'metadata.jsonl', None, None),
            (folder, folder / 'captions.json', None),
            (folder / 'images.tar', None, None),
            (folder, None, images._beside_texts),
        ):
            reader = images.ImageReader(source)
            try:
                found = listing(source) if listing else images.find_images(source, captions)
                for entry in itertools.islice(found, 1000):
                    if not entry.problem and entry.place:
                        try:
                            decode_picture(reader.read(entry.place))
                        except OSError:
                            pass  # as of adding masks: this image's failure
            except InputError as error:
                refused = error
            finally:
                reader.close()
        if refused:
            raise refused

    return _in_a_sentence(read)


@target('run-file', files=('run.yaml',))
def _run_file(folder: Path) -> Reader:
    """The file of a run of `freeatm generate`; other settings that it could have are no fault."""
    import contextlib
    import io

    from freeatm_mm.cli import generate
    from freeatm_mm.generation import GenerationJob
    from freeatm_mm.generation.limits import check_settings

    (folder / 'run.yaml').write_text(
        'pipeline: owner/name\nprompts: p.jsonl\nout: store\nsteps: 30\nsize: 512x768\n'
        'negative-prompt: "blurry, é"\nlora: [a.safetensors, b.safetensors:0.5]\nquiet: true\n'
        'mask-resolutions: [16, 32]\nmask_steps: 0:25:3\ndtype: float16\nguidance: 7.5\n'
    )

    def read(folder: Path) -> None:
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                args = generate.parse_args(['--config', str(folder / 'run.yaml')])
        except SystemExit:  # of argparse, which has said why
            raise InputError(said.getvalue().splitlines()[-1]) from None
        check_settings(generate.job_of(args, GenerationJob).options)

    return _in_a_sentence(read)


@target('requests', files=('*.http',))
def _requests(folder: Path) -> Reader:
    """What is sent to the server of `freeatm view`; another answer is no fault."""
    import io
    from types import SimpleNamespace

    from freeatm_mm.browse import StoreIndex
    from freeatm_mm.browse.server import _Handler
    from freeatm_mm.store import Store

    (folder / 'store').mkdir()
    _write_store(folder / 'store')
    for name, path in {
        'cards': '/cards?noun=bird&trust=0.5&order=most+trusted&offset=0',
        'image': '/image/1',
        'mask': '/mask/1/0',
    }.items():
        (folder / f'{name}.http').write_bytes(
            f'GET {path} HTTP/1.1\r\nHost: 127.0.0.1:80\r\nConnection: close\r\n\r\n'.encode()
        )

    def read(folder: Path) -> list[bytes]:
        store, index = Store(folder / 'store'), StoreIndex()
        for number in range(len(store)):
            index.add(number, store.read(number))
        server = SimpleNamespace(
            server_address=('127.0.0.1', 80), store=store, index=index, damaged=0, unreachable=''
        )
        for path in sorted(folder.glob('*.http')):
            if not path.is_file() or path.stat().st_size > 1 << 20:
                continue
            request, answer = io.BytesIO(path.read_bytes()), io.BytesIO()
            connection = SimpleNamespace(
                makefile=lambda *_, request=request: request,
                sendall=answer.write,
                settimeout=lambda _: None,
            )
            _Handler(connection, ('127.0.0.1', 1), server)
        return []

    return read
