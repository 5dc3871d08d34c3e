"""Captions in the formats in which their data sets are distributed."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import tarfile
import tracemalloc
import zipfile

import pytest
from helpers.examples import examples
from hypothesis import given
from hypothesis import strategies as st

from freeatm_mm.prompts import PromptRecord
from freeatm_mm.prompts.captions import READERS, caption_batches, read_captions
from freeatm_mm.prompts.captions import Caption as AnyCaption
from freeatm_mm.prompts.journal import SeenTexts
from freeatm_mm.prompts.nouns import NounFinder, TextBlobTagger
from freeatm_mm.prompts.tables import source_state

FINDER = NounFinder(TextBlobTagger())
read_coco, read_visual_genome = READERS['coco'], READERS['visual-genome']
read_cc, read_sbu = READERS['cc'], READERS['sbu']


class Caption(AnyCaption):
    """Equal to a caption of the same id and text, wherever it stands."""

    def __eq__(self, other):
        return (self.id, self.text) == (other.id, other.text) and not other.problem


# Shaped as the distributed files are, other fields included.
COCO = {
    'info': {'year': 2017},
    'licenses': [{'id': 1}],
    'images': [{'id': 9, 'file_name': '000000000009.jpg', 'caption': 'not this one'}],
    'annotations': [
        {'image_id': 9, 'id': 38, 'caption': 'A bicycle with a clock.'},
        {'image_id': 9, 'id': 182, 'caption': 'A room.\n'},
    ],
}
VISUAL_GENOME = [
    {
        'regions': [
            {
                'region_id': 1382,
                'width': 82,
                'height': 139,
                'image_id': 1,
                'x': 421,
                'y': 57,
                'phrase': 'the clock is green',
            },
            {'region_id': 1383, 'phrase': 'a man', 'image_id': 1},
        ],
        'id': 1,
    },
    {'regions': [], 'id': 2},
    {'regions': [{'region_id': 7, 'phrase': 'a dog'}], 'id': 3},
]
SBU = {
    'image_urls': ['http://a/1.jpg', 'http://a/2.jpg'],
    'user_ids': ['x', 'y'],
    'captions': ['Our dog on the beach', 'A tree'],
}


# Bytes in the middle of what was packed are others than they were.
WRONG_GZIP = gzip.compress(json.dumps(COCO).encode(), mtime=0)
WRONG_GZIP = WRONG_GZIP[:30] + bytes(byte ^ 255 for byte in WRONG_GZIP[30:60]) + WRONG_GZIP[60:]


def locked_zip():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        archive.writestr('a.txt', 'a dog')
    content = bytearray(buffer.getvalue())
    for signature, flags in ((b'PK\x03\x04', 6), (b'PK\x01\x02', 8)):
        content[content.index(signature) + flags] |= 1
    return bytes(content)


LOCKED_ZIP = locked_zip()


def later_zip():
    """Of a version of the format that is not there yet."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        archive.writestr('a.txt', 'a dog')
    content = bytearray(buffer.getvalue())
    content[content.index(b'PK\x01\x02') + 6] = 99
    return bytes(content)


def test_coco(tmp_path):
    path = tmp_path / 'captions_train2017.json'
    path.write_text(json.dumps(COCO))
    assert list(read_coco(path)) == [
        Caption('coco-38', 'A bicycle with a clock.'),
        Caption('coco-182', 'A room.\n'),
    ]


def test_visual_genome(tmp_path):
    path = tmp_path / 'region_descriptions.json'
    path.write_text(json.dumps(VISUAL_GENOME))
    expected = [
        Caption('vg-1382', 'the clock is green'),
        Caption('vg-1383', 'a man'),
        Caption('vg-7', 'a dog'),
    ]
    assert list(read_visual_genome(path)) == expected
    with zipfile.ZipFile(tmp_path / 'region_descriptions.json.zip', 'w') as archive:
        archive.write(path, 'data/region_descriptions.json')
    assert list(read_visual_genome(tmp_path / 'region_descriptions.json.zip')) == expected


@pytest.mark.parametrize(
    'line, expected',
    [
        ('a very typical bus station\thttp://lh6.ggpht.com/x.jpg', 'cc3m-1'),
        ('https://cdn.example/x.jpg\ta very typical bus station', 'cc12m-1'),
    ],
)
def test_conceptual_captions_in_both_orders(tmp_path, line, expected):
    path = tmp_path / 'train.tsv'
    path.write_text(line + '\n', encoding='utf-8')
    assert list(read_cc(path)) == [Caption(expected, 'a very typical bus station')]
    assert next(read_cc(path, name='mine')).id == 'mine-1'
    with gzip.open(tmp_path / 'train.tsv.gz', 'wt') as file:
        file.write('\n' + line)
    assert next(read_cc(tmp_path / 'train.tsv.gz')).id == expected[:-1] + '2'
    (tmp_path / 'train.tar').write_bytes(make_tar([('train.tsv', line.encode())]))
    assert next(read_cc(tmp_path / 'train.tar')).id == expected


def test_sbu_in_its_three_forms(tmp_path):
    expected = [Caption('sbu-1', 'Our dog on the beach'), Caption('sbu-2', 'A tree')]
    (tmp_path / 'captions.txt').write_text('\n'.join(SBU['captions']) + '\n')
    (tmp_path / 'all.json').write_text(json.dumps(SBU))
    (tmp_path / 'list.json').write_text(
        json.dumps(
            [
                {'image': url, 'caption': text}
                for url, text in zip(SBU['image_urls'], SBU['captions'])
            ]
        )
    )
    for name in ('captions.txt', 'all.json', 'list.json'):
        assert list(read_sbu(tmp_path / name)) == expected, name
    with gzip.open(tmp_path / 'all.json.gz', 'wb') as file:
        file.write((tmp_path / 'all.json').read_bytes())
    assert list(read_sbu(tmp_path / 'all.json.gz')) == expected


@pytest.mark.parametrize(
    'reader, name, content, message',
    [
        (
            read_coco,
            'a.json',
            '{"annotations": [{"id": 1, "caption": "a"}, {"id": 2',
            r'a\.json, after caption 1: not valid JSON',
        ),
        (read_coco, 'a.json', 'not json', r'a\.json, after caption 0: not valid JSON'),
        (read_coco, 'a.json', '', r'a\.json, after caption 0: not valid JSON'),
        (read_coco, 'a.json', '{"images": []}', r'a\.json holds no captions; is it the file'),
        (read_coco, 'a.json', '[' * 100_000, r'not valid JSON \(nested more than 50 deep\)'),
        (
            read_coco,
            'a.json',
            '{"annotations": [{"caption": "' + 'x' * (1 << 25),
            r'one item has more than 16 MiB',
        ),
        (read_coco, 'a.json', '[1' + '0' * 10_000, 'a.json, after caption 0: not valid JSON'),
        (read_sbu, 'a.txt', 'x' * ((1 << 26) + 9), r'a\.txt, line 1: has no end within 64 MiB'),
        (read_cc, 'a.tsv', '', r'a\.tsv holds no captions'),
        (
            read_cc,
            'a.tsv',
            'a\thttp://x'.encode('utf-16'),
            r'a\.tsv is UTF-16 or UTF-32; save it as',
        ),
        (read_coco, 'a.json.gz', b'no gzip', r'a\.json\.gz is damaged'),
        (read_visual_genome, 'a.json.zip', b'no zip', r'a\.json\.zip is damaged'),
        (read_sbu, 'a.zip', b'no zip', r'a\.zip is damaged'),
        (read_sbu, 'a.zip', b'PK\x03\x04 no zip', r'a\.zip is damaged'),
        (read_coco, 'a.json.gz', WRONG_GZIP, r'a\.json\.gz is damaged'),
        (read_cc, 'a.tsv.gz', WRONG_GZIP, r'a\.tsv\.gz is damaged'),
        (
            read_cc,
            'a.tsv.gz',
            gzip.compress(b'a\thttp://x\n', mtime=0)[:-4],
            r'a\.tsv\.gz is damaged',
        ),
        (read_sbu, 'a.zip', LOCKED_ZIP, r"a\.zip can't be unpacked: .*password"),
        (read_sbu, 'a.zip', later_zip(), r"a\.zip can't be unpacked: zip file version 9\.9"),
        (read_captions, 'a.parquet', b'PAR1 no', r'a\.parquet is damaged: '),
        (read_captions, 'a.parquet', b'no', r'a\.parquet is damaged: '),
        (read_captions, 'a.tar', b'no', r'a\.tar is damaged: '),
        (read_captions, 'a.jsonl.zst', b'\x28\xb5\x2f\xfd no', r'a\.jsonl\.zst is damaged'),
        (
            read_captions,
            'a.jsonl.gz',
            gzip.compress(gzip.compress(gzip.compress(b'{}', mtime=0), mtime=0), mtime=0),
            'is packed more than twice',
        ),
    ],
)
def test_bad_input_is_named_with_its_place(tmp_path, reader, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as caught:
        list(reader(path))
    assert '\n' not in str(caught.value)


def read(path, content, reader=read_captions):
    """Each caption's id, and its text or what is wrong with it."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [(c.id, c.text or c.problem) for c in reader(path)]


@pytest.mark.parametrize(
    'reader, name, content, expected',
    [
        (
            read_coco,
            'a.json',
            '{"annotations": [{"id": 1}, {"id": "x", "caption": "a"}, 3, {"caption":'
            ' 5}, {"id": 2, "caption": "a dog"}]}',
            [
                ('coco-1', 'no caption in it'),
                ('coco-2', 'an id that is no whole number'),
                ('coco-3', 'no object'),
                ('coco-4', 'a caption that is no text'),
                ('coco-2', 'a dog'),
            ],
        ),
        (
            read_visual_genome,
            'a.json',
            '[{"regions": [{"region_id": 1, "phrase": 5}]}]',
            [('vg-1', 'a caption that is no text')],
        ),
        (
            read_cc,
            'a.tsv',
            'a caption\thttp://x\nno address\na\tb\thttp://x\nhttp://y\thttp://x\nhttp://y\t2nd\n',
            [
                ('cc3m-1', 'a caption'),
                ('cc-2', 'not a caption and an address with a tab between'),
                ('cc-3', 'not a caption and an address with a tab between'),
                ('cc-4', 'not a caption and an address with a tab between'),
                ('cc12m-5', '2nd'),
            ],
        ),
        (
            read_cc,
            'a.tsv',
            b'caf\xe9\thttp://x\nok\thttp://x\n',
            [('cc-1', 'not UTF-8'), ('cc3m-2', 'ok')],
        ),
        (
            read_sbu,
            'a.txt',
            b'ok\n\xff\n' + b'x' * 500_000 + b'\nhttp://x/y\nok too',
            [
                ('sbu-1', 'ok'),
                ('sbu-2', 'not UTF-8'),
                ('sbu-3', 'longer than 400,000 bytes'),
                ('sbu-4', 'an address and no caption'),
                ('sbu-5', 'ok too'),
            ],
        ),
        (
            read_captions,
            'a.csv',
            'id,caption\n1,"a ""big"" dog,\nred"\n2,"open\n3,a cat\n4\n5,a"b"\n',
            [
                ('captions-2', 'a "big" dog,\nred'),
                ('captions-4', 'a quote without an end'),
                ('captions-5', 'a cat'),
                ('captions-6', 'not 2 columns'),
                ('captions-7', 'a"b"'),
            ],
        ),
        (
            read_captions,
            'a.jsonl',
            '{"caption": "a dog"}\n{"caption": null}\nnot\n'
            + '[' * 5000
            + '\n[1]\n{"caption": "\\ud83d"}\n{"caption": "\\ud83d\\udc26"}\n',
            [
                ('captions-1', 'a dog'),
                ('captions-2', 'no caption in it'),
                ('captions-3', 'not valid JSON'),
                ('captions-4', 'JSON that is nested too deep'),
                ('captions-5', 'no object'),
                ('captions-6', '\ud83d'),
                ('captions-7', '🐦'),
            ],
        ),
    ],
)
def test_a_bad_row_is_named_and_the_rest_is_read(tmp_path, reader, name, content, expected):
    assert read(tmp_path / name, content, reader) == expected


INCHES = [f'{n}.jpg,a 5" pipe' if n in (1, 41) else f'{n}.jpg,a dog' for n in range(1, 43)]
NO_END = 'a quote without an end'


@pytest.mark.parametrize(
    ('rows', 'expected'),
    [
        (INCHES, [row.partition(',')[2] for row in INCHES]),  # quotes that open nothing
        (['1.jpg,"5" pipe', '2.jpg,a cat'], ['not valid CSV', 'a cat']),
        (['1.jpg,"5 pipe', '2.jpg,a cat', '3.jpg,4" dog'], [NO_END, 'a cat', '4" dog']),
        (
            ['1.jpg,"5 pipe', '2.jpg,a cat', '3.jpg,4",dog'],
            ['not 2 columns', 'a cat', 'not 2 columns'],
        ),
        (['1.jpg,"a dog,', '', 'asleep"', '2.jpg,a cat'], ['a dog,\n\nasleep', 'a cat']),
    ],
)
def test_a_stray_quote_costs_no_other_row(tmp_path, rows, expected):
    said = read(tmp_path / 'a.csv', '\n'.join(['image,caption', *rows]))
    assert [text for _, text in said] == expected


@pytest.mark.parametrize(
    'name, content',
    [
        ('a.tsv', '\ufeffcaption\turl\n{}\thttp://x\n{}\thttp://y\n'),
        ('a.tsv', 'key\tURL\tTEXT\n1\thttp://x\t{}\r\n2\thttp://y\t"{}"\r\n'),
        ('a.tsv', 'filepath\ttitle\na/1.jpg\t{}\na/2.jpg\t{}\n'),  # open_clip
        ('a.tsv', '{}\thttp://x\n{}\thttps://x\tdog,cat\t/m/1\t0.9\n'),  # CC3M with labels
        ('a.csv', ',caption,url\n0,{},http://x\n1,"{}",http://y\n'),  # pandas
        ('a.csv', 'caption\n"{}"\n{}\n'),
        ('a.csv', '\ufeffurl;text\nu;{}\nu;{}\n'),
        ('a.csv', 'image_name| comment_number| comment\n1.jpg| 0| {}\n1.jpg| 1| {}\n'),  # Flickr30k
        ('captions.txt', 'image,caption\n1.jpg,{}\n1.jpg,{}\n'),  # Flickr8k
        ('Flickr8k.token.txt', '1.jpg#0\t{}\n1.jpg#1\t{}\n'),
        ('a.txt', '{}\n\n{}'),
        ('a.txt', '\ufeff{}\r\n{}\r\n'),
        ('a.jsonl', '{{"caption": "{}", "url": "u"}}\n\n{{"caption": "{}"}}\n'),
        ('a.json', '{{"TEXT": "{}", "URL": "u"}}\n{{"TEXT": "{}"}}\n'),  # lines under another name
        ('a.json', '[{{"caption": "{}", "image": "x.jpg"}}, {{"caption": "{}"}}]'),  # LAVIS
        ('a.json', '\ufeff["{}", "{}"]'),
        ('a.json', '{{"data": [{{"sentence": "{}"}}, {{"sentence": "{}"}}]}}'),
        ('a.json', '{{"rows": [{{"row": {{"text": "{}"}}}}, {{"row": {{"text": "{}"}}}}]}}'),
        (
            'a.json',
            '{{"images": [{{"sentences": [{{"raw": "{}", "tokens": ["a"]}}, {{"raw": "{}"}}], '
            '"filename": "x"}}], "dataset": "coco"}}',
        ),  # Karpathy
        ('noname', '{}\n{}\n'),
        ('noname', '["{}", "{}"]'),
    ],
)
def test_captions_as_they_are_handed_round(tmp_path, name, content):
    texts = ['A dog on the beach', 'Two cats, "asleep"' if name == 'x' else 'Two cats asleep']
    expected = [text for _, text in read(tmp_path / name, content.format(*texts))]
    assert expected == texts
    for packed, ending in ((gzip.compress, '.gz'), (bz2.compress, '.bz2'), (lzma.compress, '.xz')):
        data = (tmp_path / name).read_bytes()
        assert [text for _, text in read(tmp_path / (name + ending), packed(data))] == texts
        # A packed file under a name that doesn't tell.
        if not name.endswith('.csv'):
            assert [text for _, text in read(tmp_path / name, packed(data))] == texts
            (tmp_path / name).write_bytes(data)


def test_captions_of_parquet_are_not_all_kept_in_memory(tmp_path):
    pyarrow = pytest.importorskip('pyarrow')
    parquet = pytest.importorskip('pyarrow.parquet')
    texts = [os.urandom(1000).hex() for _ in range(8000)]
    parquet.write_table(
        pyarrow.table({'caption': texts}),
        tmp_path / 'a.parquet',
        row_group_size=500,
        use_dictionary=False,
        compression=None,
    )
    tracemalloc.start()
    try:
        same = [row.text == text for row, text in zip(read_captions(tmp_path / 'a.parquet'), texts)]
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(same) == 8000 and most < 8 << 20  # of 16 MB


def test_zstd_is_read(tmp_path):
    pyarrow = pytest.importorskip('pyarrow')
    packed = pyarrow.compress(b'{"caption": "a dog"}\n' * 2, 'zstd', asbytes=True)
    assert read(tmp_path / 'a.jsonl.zst', packed) == [
        ('captions-1', 'a dog'),
        ('captions-2', 'a dog'),
    ]


def test_several_captions_of_one_row(tmp_path):
    expected = [('captions-1_1', 'a'), ('captions-1_2', 'b'), ('captions-2', 'c')]
    assert (
        read(tmp_path / 'a.json', '[{"captions": ["a", "b"]}, {"captions": [{"raw": "c"}]}]')
        == expected
    )
    pyarrow = pytest.importorskip('pyarrow')
    from pyarrow import parquet

    path = tmp_path / 'a.parquet'
    parquet.write_table(
        pyarrow.table({'captions': [['a', 'b'], ['c'], None], 'x': [1, 2, 3]}), path
    )
    assert read(path, path.read_bytes()) == [*expected, ('captions-3', 'no caption in it')]


def test_several_sentences_of_one_line_have_ids_of_their_own(tmp_path):
    two = {'sentences': [{'raw': 'a'}, {'raw': 'b'}]}
    lists = {'regions': [{'phrase': 5}, {'phrase': ['c', 'd']}]}
    rows = [two, {'sentences': [{'raw': 'e'}]}, {'caption': 'f'}, lists]
    rows += [{'sentences': [{'raw': 'g', 'sentid': 7}, {'raw': 'h', 'sentid': 8}]}]
    expected = [('1_1', 'a'), ('1_2', 'b'), ('2', 'e'), ('3', 'f')]
    expected += [('4_1', 'a caption that is no text'), ('4_2_1', 'c'), ('4_2_2', 'd')]
    lines = '\n'.join(map(json.dumps, rows))
    assert read(tmp_path / 'a.jsonl', lines) == [
        (f'captions-{number}', text) for number, text in [*expected, ('5_1', 'g'), ('5_2', 'h')]
    ]
    tar = make_tar([(f'{n}.json', json.dumps(row).encode()) for n, row in enumerate(rows)])
    assert read(tmp_path / 'a.tar', tar, read_coco) == [
        (f'coco-{number}', text) for number, text in [*expected, ('7', 'g'), ('8', 'h')]
    ]
    pyarrow = pytest.importorskip('pyarrow')
    from pyarrow import parquet

    path = tmp_path / 'a.parquet'
    parquet.write_table(pyarrow.table({'sentences': [two['sentences'], [{'raw': 'e'}]]}), path)
    assert read(path, path.read_bytes()) == [(f'captions-{n}', text) for n, text in expected[:3]]
    regions = [[{'phrase': 'a'}, {'phrase': 'b'}], [{'phrase': 'e'}]]
    parquet.write_table(pyarrow.table({'regions': regions}), path)
    assert read(path, path.read_bytes()) == [(f'captions-{n}', text) for n, text in expected[:3]]


def test_a_caption_beside_an_empty_list_of_sentences_is_not_lost(tmp_path):
    rows = [{'sentences': []}, {'caption': 'a dog', 'sentences': []}]
    assert read(tmp_path / 'a.jsonl', '\n'.join(map(json.dumps, rows))) == [('captions-2', 'a dog')]


def test_karpathys_and_hub_copies_keep_their_ids(tmp_path):
    assert read(
        tmp_path / 'a.json', '{"images": [{"sentences": [{"raw": "a", "sentid": 7}]}]}', read_coco
    ) == [('coco-7', 'a')]
    assert read(tmp_path / 'b.csv', 'id,caption\n38,a\n', read_coco) == [('coco-38', 'a')]


def make_tar(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w') as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


SHARD = make_tar(
    [
        ('000.jpg', b'j' * 5000),
        ('000.json', b'{"caption": "a dog", "key": "000"}'),
        ('000.txt', b'a dog'),
        ('001.txt', b'a cat'),
        ('001.json', b'{"caption": "x"}'),
        ('002.json', b'{"caption": null}'),
        ('003.txt', b'\xff'),
    ]
)
SHARD_READ = [
    ('captions-1', 'a dog'),
    ('captions-2', 'a cat'),
    ('captions-3', 'no caption in it'),
    ('captions-4', 'not UTF-8'),
]


def test_shards_of_img2dataset(tmp_path):
    assert read(tmp_path / '00000.tar', SHARD) == SHARD_READ
    assert read(tmp_path / '00000.tar.gz', gzip.compress(SHARD)) == SHARD_READ
    with pytest.raises(ValueError, match='is damaged: '):
        read(tmp_path / 'cut.tar', SHARD[:3000])
    sbu = make_tar(
        [
            ('d/SBU_captioned_photo_dataset_captions.txt', b'a\nb\n'),
            ('d/SBU_captioned_photo_dataset_urls.txt', b'http://x\n'),
        ]
    )
    assert read(tmp_path / 'a.tgz', gzip.compress(sbu), read_sbu) == [
        ('sbu-1', 'a'),
        ('sbu-2', 'b'),
    ]
    # An entry that says that it has terabytes takes no memory.
    header = tarfile.TarInfo('x')
    header.type, header.size = tarfile.XHDTYPE, 1 << 33
    with pytest.raises(ValueError, match='damaged'):
        read(tmp_path / 'large.tar', header.tobuf() + bytes(2048))


def test_folders_of_img2dataset(tmp_path):
    folder, elsewhere = tmp_path / 'cc', tmp_path / 'secret.txt'
    (folder / '00000').mkdir(parents=True)
    elsewhere.write_text('a secret')
    for name, content in (
        ('00000/0.txt', b'a dog\nand a ball'),
        ('00000/0.jpg', b'j'),
        ('00000/1.json', b'{"caption": "a cat"}'),
        ('00000/1.txt', b'a cat'),
        ('00000/1.jpg', b'j'),
        ('00000_stats.json', b'{}'),
        ('00001.tar', SHARD),
        ('bad.tar', b'no'),
    ):
        (folder / name).write_bytes(content)
    (folder / 'link.txt').symlink_to(elsewhere)
    (folder / 'links').symlink_to(tmp_path)
    found = [(c.text or c.problem) for c in read_captions(folder)]
    assert found == [
        'a link in a folder',
        'a dog',
        'a cat',
        'no caption in it',
        'not UTF-8',
        "a file that can't be read",
        'a link in a folder',
        'a dog\nand a ball',
        'a cat',
    ]
    numbers = [c.id for c in read_captions(folder)]
    assert len(set(numbers)) == len(numbers)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match='holds no file of captions'):
        list(read_captions(tmp_path / 'empty'))


def test_lists_in_a_folder_are_lists(tmp_path):
    """A text that lies beside no image may hold a caption in each line."""
    for name, content in (
        ('a.txt', 'a dog\n\na cat\na bird\n'),
        ('b.txt', 'a cow\n'),
        ('c.txt', 'a horse\nin a field'),
        ('c.JPG', ''),
    ):
        (tmp_path / name).write_text(content)
    assert [caption.text.strip() for caption in read_captions(tmp_path)] == [
        'a dog',
        'a cat',
        'a bird',
        'a cow',
        'a horse\nin a field',
    ]


def test_a_source_that_changed_is_told_from_itself(tmp_path):
    folder, file = tmp_path / 'folder', tmp_path / 'captions.txt'
    (folder / 'inner').mkdir(parents=True)
    (folder / 'inner/b.txt').write_text('a dog')
    file.write_text('a dog\n' * 100_000)
    states = [source_state(folder), source_state(file)]
    (folder / 'b.jpg').write_text('no captions')
    os.utime(file)
    assert [source_state(folder), source_state(file)] == states
    (folder / 'inner/a.jsonl').write_text('')
    with file.open('r+') as opened:
        opened.seek(6 * 99_999)
        opened.write('a cat')
    for state, before in zip((source_state(folder), source_state(file)), states):
        assert state != before
    assert source_state(folder).startswith('2 files, ')


def test_a_folder_that_cannot_be_listed_is_told(tmp_path, monkeypatch):
    (tmp_path / 'shut').mkdir()
    (tmp_path / 'z.txt').write_text('a dog')
    scandir = os.scandir

    def refuse(path):
        if os.path.basename(path) == 'shut':
            raise PermissionError(13, 'Permission denied', str(path))
        return scandir(path)

    monkeypatch.setattr(os, 'scandir', refuse)
    assert [(c.text or c.problem) for c in read_captions(tmp_path)] == [
        'a dog',
        "a folder that can't be listed (Permission denied)",
    ]


def test_what_is_no_file_is_named_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'pipe.json')
    for path, kind in ((tmp_path / 'pipe.json', 'a pipe'), ('/dev/zero', 'a device')):
        for reader in READERS.values():
            with pytest.raises(ValueError, match=f'is {kind}, not a caption file'):
                list(reader(path))
    with open(tmp_path / 'huge.txt', 'wb') as file:
        file.truncate(10**12)
    with pytest.raises(ValueError, match='has no end within 64 MiB'):
        list(read_captions(tmp_path / 'huge.txt'))


def test_an_archive_of_several_files_is_named(tmp_path):
    path = tmp_path / 'annotations.zip'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('a.json', '{}')
        archive.writestr('b.json', '{}')
    with pytest.raises(ValueError, match=r'holds 2 files of captions, not one \(a\.json, b\.json'):
        list(read_coco(path))


FILES = st.one_of(
    st.binary(max_size=80),
    st.lists(
        st.sampled_from(
            [
                'caption',
                'a dog',
                '"',
                '\t',
                ',',
                '\n',
                '{',
                '}',
                '[',
                ']',
                ':',
                'http://x',
                '"caption"',
                '\ufeff',
                '\x00',
                'é',
                '\\ud83d',
                'url',
                '|',
                ' ',
                '1',
                '"regions"',
                '"annotations"',
                'null',
            ]
        ),
        max_size=30,
    ).map(lambda parts: ''.join(parts).encode()),
    st.tuples(
        st.sampled_from(
            [
                SHARD,
                WRONG_GZIP,
                gzip.compress(SHARD, mtime=0),
                LOCKED_ZIP,
                json.dumps(COCO).encode(),
                json.dumps(VISUAL_GENOME).encode(),
            ]
        ),
        st.integers(0, 400),
        st.integers(0, 255),
    ).map(lambda cut: cut[0][: cut[1]] + bytes([cut[2]]) + cut[0][cut[1] + 1 :]),
)


@examples(200)
@given(
    FILES,
    st.sampled_from(
        ['.json', '.jsonl', '.csv', '.tsv', '.txt', '.tar', '.parquet', '', '.json.gz', '.zip']
    ),
    st.sampled_from(sorted(READERS)),
)
def test_any_file_is_captions_or_one_sentence(tmp_path_factory, content, ending, source):
    path = tmp_path_factory.getbasetemp() / f'any{ending}'
    path.write_bytes(content)
    try:
        captions = list(READERS[source](path))
    except ValueError as error:
        assert '\n' not in str(error) and 'any' in str(error)
        return
    assert all((caption.text is None) == bool(caption.problem) for caption in captions)
    readable = [caption for caption in captions if caption.text is not None]
    for batch in caption_batches(readable, FINDER, keep_without_nouns=True):
        assert all(isinstance(record, PromptRecord) for record in batch.records)


@examples(300)
@given(
    st.lists(
        st.one_of(
            st.text(max_size=60),
            st.lists(
                st.sampled_from(
                    [
                        'dog',
                        'a ',
                        'tennis racket',
                        '&amp;',
                        '&lt;b&gt;',
                        '<b>',
                        ' ',
                        'e\u0301',
                        '\u200b',
                        '\u200d',
                        '🐦',
                        '\u202e',
                        '\x00',
                        '\ud83d',
                        '<PERSON>',
                        "'s",
                        'http://x.com/a.jpg',
                        '#dog',
                        '犬',
                        '.',
                        '\n',
                        '\\n',
                        '[sic]',
                        'ﬁsh',
                        'İ',
                        '5 mm',
                        '%20',
                    ]
                ),
                max_size=20,
            ).map(''.join),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_spans_of_any_caption_are_the_prompts(texts):
    captions = [AnyCaption(f'x-{number}', text) for number, text in enumerate(texts)]
    (batch,) = caption_batches(captions, FINDER, keep_without_nouns=True)
    for record in batch.records:
        for noun in record.nouns:
            assert record.prompt[noun.start : noun.end] == noun.text
        record.prompt.encode()
    skipped = sum(count for name, count in batch.counts.items() if name.startswith('skipped'))
    assert len(batch.records) + skipped == len(texts)


@pytest.mark.parametrize('name', sorted(READERS))
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match='there is no caption file'):
        list(READERS[name](tmp_path / 'nothing.json'))
    with pytest.raises(FileNotFoundError, match='there is no caption file'):
        list(READERS[name](tmp_path / 'nothing.zip'))


def test_a_large_file_is_not_held_in_memory(tmp_path):
    """Reading begins, and goes on, before the file has an end."""
    path = tmp_path / 'cut.json'
    item = json.dumps({'id': 1, 'caption': 'a dog ' * 50})
    path.write_text('{"annotations": [' + ','.join([item] * 2000))  # 600 kB, never closed
    captions = read_coco(path)
    assert [next(captions).id for _ in range(1000)] == ['coco-1'] * 1000


CAPTIONS = [
    Caption('x-1', '  A dog \n with a  red ball '),
    Caption('x-2', ''),
    Caption('x-3', 'walking very slowly'),
    Caption('x-4', 'a DOG with a red ball'),
    Caption('x-5', '<PERSON> with a cat'),
    Caption('x-6', 'a dog ' * 31),
    Caption('x-7', 'a dog \ud83d'),
]


def batches(seen=None, **options):
    return list(caption_batches(CAPTIONS, FINDER, seen=seen, batch_size=2, **options))


def test_batches_say_what_became_of_every_caption():
    with SeenTexts() as seen:
        made = batches(seen)
    records = [record for batch in made for record in batch.records]
    assert [(r.id, r.prompt, r.source) for r in records] == [
        ('x-1', 'A dog with a red ball', 'x'),
        ('x-5', 'person with a cat', 'x'),
    ]
    assert [n.text for n in records[0].nouns] == ['dog', 'ball']
    counts = {}
    for batch in made:
        for name, number in batch.counts.items():
            counts[name] = counts.get(name, 0) + number
    assert counts == {
        'nouns': 4,
        'skipped: empty': 1,
        'skipped: no noun': 1,
        'skipped: duplicates': 1,
        'skipped: more than 60 words': 1,
        'skipped: half a character': 1,
    }
    assert sum(batch.read for batch in made) == len(CAPTIONS)
    skipped = sum(number for name, number in counts.items() if name.startswith('skipped'))
    assert len(records) + skipped == len(CAPTIONS)


def test_batches_go_on_where_a_run_stopped():
    whole = batches()
    assert batches(skip=2) == whole[1:]
    assert batches(skip=7) == []


def test_captions_without_nouns_stay_on_request():
    kept = [r.id for batch in batches(keep_without_nouns=True, max_words=10) for r in batch.records]
    assert kept == ['x-1', 'x-3', 'x-4', 'x-5']


def test_bad_captions_are_counted_told_and_stop_a_run_only_if_many():
    def captions(bad, good):
        for number in range(max(bad, good)):
            if number < bad:
                yield AnyCaption(f'x-{number}', None, 'not UTF-8', f'a.tsv, line {number + 1}')
            if number < good:
                yield AnyCaption(f'y-{number}', f'a dog number {number}')

    made = list(caption_batches(captions(20, 30), FINDER, batch_size=10))
    assert sum(batch.counts.get('unreadable: not UTF-8', 0) for batch in made) == 20
    assert sum(len(batch.records) for batch in made) == 30
    messages = [message for batch in made for message in batch.messages]
    assert len(messages) == 10
    assert messages[0] == 'a.tsv, line 1: not UTF-8; passed over'
    with pytest.raises(ValueError, match=r'a\.tsv, line 21: not UTF-8; that is 21 of 41 captions'):
        list(caption_batches(captions(21, 30), FINDER))
    assert list(caption_batches(captions(21, 30), FINDER, max_unreadable=0.6))
    with pytest.raises(ValueError, match='that is 2 of 2 captions'):
        list(caption_batches(captions(2, 0), FINDER))
    # What an earlier run has met counts too.
    with pytest.raises(ValueError, match='that is 21 of 42 captions'):
        list(caption_batches([*captions(0, 40), *captions(2, 0)], FINDER, skip=40, unreadable=19))


@pytest.mark.parametrize(
    'text, prompt, nouns',
    [
        ('salt &amp; pepper on a table', 'salt & pepper on a table', ['salt', 'pepper', 'table']),
        ('&quot;my dog&quot; &amp;amp; a cat', '"my dog" & a cat', ['dog', 'cat']),
        ('&lt;PERSON&gt; with a &lt;b&gt;dog&lt;/b&gt;', 'person with a dog', ['person', 'dog']),
        ("<PERSON>'s dog", "person's dog", ['person', 'dog']),
        ('a <a href="http://x">dog</a><br/>on a beach', 'a dog on a beach', ['dog', 'beach']),
        ('a d\u200bog \u200fand a\u00a0cat\x00!', 'a dog and a cat !', ['dog', 'cat']),
        ('a cafe\u0301 on a street', 'a caf\u00e9 on a street', ['caf\u00e9', 'street']),
        ('a dog [sic] in a park', 'a dog in a park', ['dog', 'park']),
        ('a dog\\nin a park', 'a dog in a park', ['dog', 'park']),
        ('\ufeffa dog', 'a dog', ['dog']),
        (
            'photo of a dog http://x.com/dog.jpg',
            'photo of a dog http://x.com/dog.jpg',
            ['photo', 'dog'],
        ),
    ],
)
def test_captions_are_cleaned_and_spans_are_the_prompts(text, prompt, nouns):
    (batch,) = caption_batches([AnyCaption('x-1', text)], FINDER)
    (record,) = batch.records
    assert record.prompt == prompt
    assert [noun.text for noun in record.nouns] == nouns
