"""Captions in the formats in which their data sets are distributed."""
from __future__ import annotations

import gzip
import io
import json
import zipfile

import pytest

from freeatm_mm.prompts.captions import (
    READERS,
    Caption,
    caption_batches,
    read_cc,
    read_coco,
    read_sbu,
    read_visual_genome,
)
from freeatm_mm.prompts.journal import SeenTexts
from freeatm_mm.prompts.nouns import NounFinder, TextBlobTagger

FINDER = NounFinder(TextBlobTagger())

# Shaped as the distributed files are, other fields included.
COCO = {'info': {'year': 2017}, 'licenses': [{'id': 1}],
        'images': [{'id': 9, 'file_name': '000000000009.jpg', 'caption': 'not this one'}],
        'annotations': [{'image_id': 9, 'id': 38, 'caption': 'A bicycle with a clock.'},
                        {'image_id': 9, 'id': 182, 'caption': 'A room.\n'}]}
VISUAL_GENOME = [
    {'regions': [{'region_id': 1382, 'width': 82, 'height': 139, 'image_id': 1, 'x': 421, 'y': 57,
                  'phrase': 'the clock is green'},
                 {'region_id': 1383, 'phrase': 'a man', 'image_id': 1}], 'id': 1},
    {'regions': [], 'id': 2},
    {'regions': [{'region_id': 7, 'phrase': 'a dog'}], 'id': 3}]
SBU = {'image_urls': ['http://a/1.jpg', 'http://a/2.jpg'], 'user_ids': ['x', 'y'],
       'captions': ['Our dog on the beach', 'A tree']}


# Bytes in the middle of what was packed are others than they were.
WRONG_GZIP = gzip.compress(json.dumps(COCO).encode())
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


def test_coco(tmp_path):
    path = tmp_path / 'captions_train2017.json'
    path.write_text(json.dumps(COCO))
    assert list(read_coco(path)) == [Caption('coco-38', 'A bicycle with a clock.'),
                                     Caption('coco-182', 'A room.\n')]


def test_visual_genome(tmp_path):
    path = tmp_path / 'region_descriptions.json'
    path.write_text(json.dumps(VISUAL_GENOME))
    expected = [Caption('vg-1382', 'the clock is green'), Caption('vg-1383', 'a man'),
                Caption('vg-7', 'a dog')]
    assert list(read_visual_genome(path)) == expected
    with zipfile.ZipFile(tmp_path / 'region_descriptions.json.zip', 'w') as archive:
        archive.write(path, 'data/region_descriptions.json')
    assert list(read_visual_genome(tmp_path / 'region_descriptions.json.zip')) == expected


@pytest.mark.parametrize('line, expected', [
    ('a very typical bus station\thttp://lh6.ggpht.com/x.jpg', 'cc3m-1'),
    ('https://cdn.example/x.jpg\ta very typical bus station', 'cc12m-1')])
def test_conceptual_captions_in_both_orders(tmp_path, line, expected):
    path = tmp_path / 'train.tsv'
    path.write_text(line + '\n', encoding='utf-8')
    assert list(read_cc(path)) == [Caption(expected, 'a very typical bus station')]
    assert next(read_cc(path, name='mine')).id == 'mine-1'
    with gzip.open(tmp_path / 'train.tsv.gz', 'wt') as file:
        file.write('\n' + line)
    assert next(read_cc(tmp_path / 'train.tsv.gz')).id == expected[:-1] + '2'


def test_sbu_in_its_three_forms(tmp_path):
    expected = [Caption('sbu-1', 'Our dog on the beach'), Caption('sbu-2', 'A tree')]
    (tmp_path / 'captions.txt').write_text('\n'.join(SBU['captions']) + '\n')
    (tmp_path / 'all.json').write_text(json.dumps(SBU))
    (tmp_path / 'list.json').write_text(json.dumps(
        [{'image': url, 'caption': text} for url, text in zip(SBU['image_urls'],
                                                              SBU['captions'])]))
    for name in ('captions.txt', 'all.json', 'list.json'):
        assert list(read_sbu(tmp_path / name)) == expected, name
    with gzip.open(tmp_path / 'all.json.gz', 'wb') as file:
        file.write((tmp_path / 'all.json').read_bytes())
    assert list(read_sbu(tmp_path / 'all.json.gz')) == expected


@pytest.mark.parametrize('reader, name, content, message', [
    (read_coco, 'a.json', '{"annotations": [{"id": 1, "caption": "a"}, {"id": 2',
     r'a\.json, after annotation 1: not valid JSON'),
    (read_coco, 'a.json', 'not json', r'a\.json, after annotation 0: not valid JSON'),
    (read_coco, 'a.json', '', r'a\.json, after annotation 0: not valid JSON'),
    (read_coco, 'a.json', '{"images": []}', r'a\.json holds no annotation; is it the file'),
    (read_coco, 'a.json', '{"annotations": [{"id": 1}]}',
     r"a\.json, annotation 1: has no string 'caption'"),
    (read_coco, 'a.json', '{"annotations": [{"id": "x", "caption": "a"}]}',
     r"a\.json, annotation 1: has no integer 'id'"),
    (read_coco, 'a.json', '{"annotations": [3]}', r"annotation 1: has no integer 'id'"),
    (read_visual_genome, 'a.json', '[{"regions": [{"region_id": 1, "phrase": 5}]}]',
     r"a\.json, region 1: has no string 'phrase'"),
    (read_cc, 'a.tsv', 'a caption\thttp://x\nno address\n', r'a\.tsv, line 2: must be a caption '
     r'and an address .* has 1 column$'),
    (read_cc, 'a.tsv', 'a\tb\thttp://x\n', r'line 1: .* has 3 columns$'),
    (read_cc, 'a.tsv', b'caf\xe9\thttp://x\n', r'a\.tsv, line 1: not UTF-8'),
    (read_sbu, 'a.txt', b'ok\n\xff\n', r'a\.txt, line 2: not UTF-8'),
    (read_sbu, 'a.txt', 'x' * 500_000, r'a\.txt, line 1: longer than any caption'),
    (read_sbu, 'a.json', '[{"image": "x"}]', r"a\.json, caption 1: has no string 'caption'"),
    (read_coco, 'a.json.gz', b'no gzip', r'a\.json\.gz is damaged'),
    (read_visual_genome, 'a.json.zip', b'no zip', r'a\.json\.zip is damaged'),
    (read_sbu, 'a.zip', b'no zip', r'a\.zip is damaged'),
    (read_coco, 'a.json.gz', WRONG_GZIP, r'a\.json\.gz is damaged'),
    (read_cc, 'a.tsv.gz', WRONG_GZIP, r'a\.tsv\.gz is damaged'),
    (read_sbu, 'a.zip', LOCKED_ZIP, r"a\.zip can't be unpacked: .*password"),
])
def test_bad_input_is_named_with_its_place(tmp_path, reader, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as caught:
        list(reader(path))
    assert '\n' not in str(caught.value)


def test_an_archive_of_several_files_is_named(tmp_path):
    path = tmp_path / 'annotations.zip'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('a.json', '{}')
        archive.writestr('b.json', '{}')
    with pytest.raises(ValueError, match=r'holds 2 files that end with \.json, not one'):
        list(read_coco(path))


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


CAPTIONS = [Caption('x-1', '  A dog \n with a  red ball '), Caption('x-2', ''),
            Caption('x-3', 'walking very slowly'), Caption('x-4', 'a DOG with a red ball'),
            Caption('x-5', '<PERSON> with a cat'), Caption('x-6', 'a dog ' * 31),
            Caption('x-7', 'a dog \ud83d')]


def batches(seen=None, **options):
    return list(caption_batches(CAPTIONS, FINDER, seen=seen, batch_size=2, **options))


def test_batches_say_what_became_of_every_caption():
    with SeenTexts() as seen:
        made = batches(seen)
    records = [record for batch in made for record in batch.records]
    assert [(r.id, r.prompt, r.source) for r in records] == [
        ('x-1', 'A dog with a red ball', 'x'), ('x-5', 'person with a cat', 'x')]
    assert [n.text for n in records[0].nouns] == ['dog', 'ball']
    counts = {}
    for batch in made:
        for name, number in batch.counts.items():
            counts[name] = counts.get(name, 0) + number
    assert counts == {'nouns': 4, 'skipped: empty': 1, 'skipped: no noun': 1,
                      'skipped: said before': 1, 'skipped: more than 60 words': 1,
                      'skipped: half a character': 1}
    assert sum(batch.read for batch in made) == len(CAPTIONS)
    skipped = sum(number for name, number in counts.items() if name.startswith('skipped'))
    assert len(records) + skipped == len(CAPTIONS)


def test_batches_go_on_where_a_run_stopped():
    whole = batches()
    assert batches(skip=2) == whole[1:]
    assert batches(skip=7) == []


def test_captions_without_nouns_stay_on_request():
    kept = [r.id for batch in batches(keep_without_nouns=True, max_words=10)
            for r in batch.records]
    assert kept == ['x-1', 'x-3', 'x-4', 'x-5']
