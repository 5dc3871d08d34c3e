"""Stores and checkpoints on the Hub: cards, streaming, commits, models that others load."""

from __future__ import annotations

import io
import shutil
import threading

import numpy as np
import pytest
import torch
from helpers.servers import serve_hub
from helpers.store_samples import assert_same, folder_bytes, make_sample, varied_sample
from helpers.tools import exit_code
from PIL import Image

from freeatm_mm import addresses, cli
from freeatm_mm.errors import InputError
from freeatm_mm.hub import Terms, draft_checkpoint, draft_store
from freeatm_mm.hub.cards import _plain
from freeatm_mm.hub.push import _architecture
from freeatm_mm.store import (
    Store,
    StoreError,
    decode_sample,
    masks_per_noun,
    pull_store,
    verify_store,
    write_store,
)

hub = pytest.importorskip('huggingface_hub')
TERMS = Terms('cc-by-4.0')


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(addresses, 'DELAYS', (0.0,))
    monkeypatch.setenv('FREEATM_CACHE', str(tmp_path / 'cache'))


@pytest.fixture
def path(tmp_path):
    """A store of 7 samples in shards of 3, all png, as `datasets` wants one kind of picture."""
    config = {'pipeline': '/home/me/models/sd15', 'steps': 5, 'note': '``` <b>'}
    write_store(tmp_path / 'store', (make_sample(n, n % 3) for n in range(7)), 3, config)
    return tmp_path / 'store'


def test_a_card_says_what_a_store_is(path, tmp_path):
    files = draft_store(path, 'hf://datasets/me/birds', tmp_path / 'draft', TERMS, previews=4)
    assert sorted(file.name for file in files) == ['README.md', 'preview.jpg']
    with Image.open(tmp_path / 'draft' / 'preview.jpg') as sheet:
        assert sheet.width > 100 and sheet.format == 'JPEG'
    text = (tmp_path / 'draft' / 'README.md').read_text()
    card = hub.DatasetCard(text)
    assert card.data.license == 'cc-by-4.0' and card.data.size_categories == 'n<1K'
    assert card.data.configs[0]['data_files'][0]['path'] == 'shard-*.tar'
    assert '7 images with 6 soft masks' in text and 'bird (4), dress (2).' in text
    assert '20 x 16 pixels' in text and "load_dataset('me/birds'" in text
    assert '"pipeline": "sd15"' in text and '/home' not in text and text.count('```') == 6 + 2
    with pytest.raises(InputError, match='is no data set of the Hub'):
        draft_store(path, 'hf://me/birds', tmp_path / 'draft', TERMS)


@pytest.mark.parametrize(
    'words', [('CC BY',), ('other',), ('other', 'Mine'), ('mit', 'MIT', 'https://x'), ('a\nb: c',)]
)
def test_licences_are_the_hubs(words):
    with pytest.raises(InputError, match='licence'):
        Terms(*words)
    assert Terms('other', 'Mine', 'https://x').fields()['license_name'] == 'Mine'


def test_a_folder_as_on_the_hub_streams_with_a_mask_per_noun(path, tmp_path):
    datasets = pytest.importorskip('datasets')
    shutil.copytree(path, tmp_path / 'birds')
    draft_store(path, 'hf://datasets/me/birds', tmp_path / 'birds', TERMS, previews=1)
    images = datasets.load_dataset(str(tmp_path / 'birds'), split='train', streaming=True)
    found = list(images.map(masks_per_noun))
    assert len(found) == 7
    for example, sample in zip(found, Store(path)):
        assert example['key'] == sample.key and example['png'].size == sample.image.size
        assert example['nouns'] == [noun.name for noun in sample.nouns]
        np.testing.assert_array_equal(example['masks'], sample.masks)


def test_masks_per_noun_whatever_the_reader_made_of_them(path):
    sample, raw = Store(path)[2], Store(path).read(2)
    info = {**raw.info, 'meta': '{}'}
    picture = Image.open(io.BytesIO(raw.masks_bytes))
    for masks in (
        raw.masks_bytes,
        {'bytes': raw.masks_bytes, 'path': None},
        picture,
        picture.convert('RGB'),
        np.asarray(picture),
    ):
        found = masks_per_noun({'__key__': '000002', 'json': info, 'masks.png': masks})
        np.testing.assert_array_equal(found['masks'], sample.masks)
        np.testing.assert_array_equal(found['scales'], sample.scales)
        assert found['nouns'] == ['bird', 'dress']
    for example, message in (
        ({'json': info}, 'has no json and masks.png'),
        ({'json': b'{', 'masks.png': b''}, 'JSON is not a sample'),
        ({'json': info, 'masks.png': b'x'}, 'the picture is no readable png'),
    ):
        with pytest.raises(StoreError, match=message):
            masks_per_noun(example)


def test_a_store_goes_to_the_hub_in_few_commits_and_is_read_there(
    path, tmp_path, monkeypatch, capsys
):
    address = 'hf://datasets/me/birds'
    words = ['push', path, address, '--license', 'cc-by-4.0', '--previews', '2']
    with serve_hub(monkeypatch) as server:
        with pytest.raises(StoreError, match='not a store|is not there|not there'):
            Store(address)
        server.fail_commit = 'shard-000002.json'
        assert exit_code(cli, words) == 2
        said = capsys.readouterr().err
        assert 'server answers 503 (2 tries)' in said and 'hf_secret' not in said
        assert 'store.json' not in server.repos['datasets/me/birds']
        server.fail_commit = None
        assert exit_code(cli, words) == 0
        assert [len(names) for _, names in server.commits] == [9, 2, 1]
        assert server.commits[-1][1] == ['store.json']
        files = server.repos['datasets/me/birds']
        assert folder_bytes(path).items() <= files.items()
        assert set(files) - set(folder_bytes(path)) == {'README.md', 'preview.jpg'}
        assert exit_code(cli, words) == 0 and len(server.commits) == 3
        store = Store(address)
        for number in (5, 0, 1, 2):
            assert_same(store[number], Store(path)[number])
        assert list(verify_store(address, decode=False)) == []
        pull_store(address, tmp_path / 'copy')
        assert folder_bytes(tmp_path / 'copy') == folder_bytes(path)
        assert server.tokens == {'Bearer hf_secretofthetest'} | (server.tokens & {None})


def test_samples_of_the_hub_are_asked_for_at_the_same_time(path, monkeypatch):
    """As docs/store.md says of a batch, and each with one request."""
    with serve_hub(monkeypatch) as server:
        server.repos['datasets/me/birds'] = folder_bytes(path)
        store = Store('hf://datasets/me/birds')
        store.read_many([0, 3, 6])  # now the indexes are here, and the places of the shards known
        server.asked.clear()
        server.together = threading.Barrier(3, timeout=20)
        numbers = [1, 4, 6]  # a shard each
        for raw, number in zip(store.read_many(numbers), numbers):
            assert_same(decode_sample(raw), Store(path)[number])
        assert not server.together.broken
        assert sorted(name[-len('shard-000000.tar') :] for name in server.asked) == [
            f'shard-{shard:06d}.tar' for shard in range(3)
        ]


def test_what_a_push_needs_is_said(path, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    address = 'hf://datasets/me/birds'
    for words, message in (
        ([path, address], 'needs a licence: --license cc-by-4.0'),
        ([path, address, '--license', 'mit', '--figure', 'a=1'], '--figure goes with a checkpoint'),
        ([path, 's3://b/s', '--license', 'mit'], '--license goes with an address of the Hub'),
        ([path, 's3://b/s', '--draft', 'x'], '--draft goes with an address of the Hub'),
        ([tmp_path / 'no.pth', 'hf://me/a', '--license', 'mit'], 'no.pth'),
        ([path, address, '--license', 'mit', '--figure', 'a'], 'is not NAME=NUMBER'),
    ):
        assert exit_code(cli, ['push', *words]) == 2
        assert message in capsys.readouterr().err
    assert exit_code(cli, ['push', path, address, '--license', 'mit', '--draft', 'd']) == 0


def tiny_vit():
    """The backbone that timm calls test_vit, by mmpretrain's names."""
    sizes = {'ln1': (64,), 'ln2': (64,), 'attn.proj': (64, 64), 'attn.qkv': (192, 64)}
    sizes |= {'ffn.layers.0.0': (192, 64), 'ffn.layers.1': (64, 192)}
    state = {'cls_token': (1, 1, 64), 'pos_embed': (1, 101, 64)}
    state |= {
        'patch_embed.projection.weight': (64, 3, 16, 16),
        'patch_embed.projection.bias': (64,),
    }
    for name, size in (
        *((f'layers.{layer}.{name}', size) for layer in range(6) for name, size in sizes.items()),
        ('ln1', (64,)),
    ):
        state |= {f'{name}.weight': size, f'{name}.bias': size[:1]}
    generator = torch.Generator().manual_seed(0)
    return {name: 0.1 * torch.randn(size, generator=generator) for name, size in state.items()}


def test_a_checkpoint_gets_a_card_and_files_that_others_load(tmp_path, monkeypatch, capsys):
    timm, transformers = map(pytest.importorskip, ('timm', 'transformers'))
    state = {f'backbone.{name}': value for name, value in tiny_vit().items()}
    meta = {'iter': 500, 'epoch': 2}
    torch.save({'meta': meta, 'state_dict': state}, tmp_path / 'epoch_2.pth')
    words = ['push', tmp_path / 'epoch_2.pth', 'hf://me/net', '--license', 'apache-2.0']
    words += ['--figure', 'linear=61.25', '--data', 'me/birds', '--heads', '2']
    with serve_hub(monkeypatch) as server:
        assert exit_code(cli, words) == 0
        assert '5 files copied' in capsys.readouterr().out
        assert exit_code(cli, words) == 0 and len(server.commits) == 1
        files = server.repos['models/me/net']
    out = tmp_path / 'net'
    out.mkdir()
    for name, data in files.items():
        (out / name).write_bytes(data)
    card = hub.ModelCard((out / 'README.md').read_text())
    assert card.data.license == 'apache-2.0' and card.data.datasets == ['me/birds']
    for line in ('ViT of 6 layers, 64 channels', '| linear | 61.25 |', '| steps | 500 |'):
        assert line in card.text
    image = torch.rand(1, 3, 160, 160)
    model = transformers.AutoModel.from_pretrained(out).eval()
    there = timm.create_model(
        'test_vit', num_classes=0, global_pool='', checkpoint_path=str(out / 'timm.safetensors')
    )
    with torch.no_grad():
        torch.testing.assert_close(
            model(image).last_hidden_state, there.eval()(image), rtol=1e-4, atol=1e-4
        )
    kept = torch.load(out / 'backbone.pth', weights_only=True)['state_dict']
    assert all(torch.equal(kept[name], value) for name, value in tiny_vit().items())
    with pytest.raises(InputError, match='is no model of the Hub'):
        draft_checkpoint(tmp_path / 'epoch_2.pth', 'hf://datasets/me/x', out, TERMS)


@pytest.mark.parametrize(
    ('depth', 'channels', 'name'),
    [
        (50, 64, 'ResNet-50'),
        (18, 64, 'ResNet-18'),
        (18, 32, 'ResNet-18 of 32 channels in its first stage'),
    ],
)
def test_cards_say_what_network_it_is(depth, channels, name):
    backbones = pytest.importorskip('mmpretrain.models.backbones')
    network = backbones.ResNet(depth, stem_channels=channels, base_channels=channels)
    assert _architecture(network.state_dict()) == name
    assert depth != 50 or _architecture(backbones.ResNeXt(50).state_dict()) == 'ResNeXt-50'


def test_cards_hold_no_markup_of_others(tmp_path):
    assert _plain('a|b <i>\n# `c`') == 'a\\|b &lt;i&gt; \\# \\`c\\`'
    write_store(tmp_path / 's', [varied_sample(0)], 1)
    files = draft_store(
        tmp_path / 's', 'hf://datasets/me/x', tmp_path, TERMS, title='<script>', text='Hello *you*'
    )
    text = files[1].read_text()
    assert '# &lt;script&gt;' in text and 'Hello *you*' in text
