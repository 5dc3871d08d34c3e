"""Attention of nouns against LAVIS's own maps, the loss that holds it to masks, and pointing."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

pytest.importorskip('lavis')

from helpers.tiny_blip import (  # noqa: E402
    PRETRAIN,
    make_parts,
    model_options,
    pretrain_options,
)
from helpers.tiny_stores import make_store, make_store_of_spellings  # noqa: E402
from lavis.processors.blip_processors import BlipCaptionProcessor  # noqa: E402

from freeatm_mm.checkpoints import read_state  # noqa: E402
from freeatm_mm.errors import InputError  # noqa: E402
from freeatm_mm.lavis_ext import launch  # noqa: E402
from freeatm_mm.lavis_ext.datasets import FreeATMPretrainDataset, StorePairs  # noqa: E402
from freeatm_mm.lavis_ext.grounding import (  # noqa: E402
    attention_of_nouns,
    find_words,
    mask_consistency,
    places_of,
    point,
    record_matching,
)
from freeatm_mm.lavis_ext.models import FreeATMBlipPretrain  # noqa: E402
from freeatm_mm.lavis_ext.processors import FreeATMCaptionProcessor, WholeView  # noqa: E402
from freeatm_mm.ops.position import (  # noqa: E402
    WHOLE_VIEW,
    PlacedObject,
    flip_matrix,
    objects_from_masks,
)

GRID = 'datasets.freeatm_pretrain.build_info.mask_grid'


@pytest.fixture(scope='module')
def parts(tmp_path_factory):
    return make_parts(tmp_path_factory.mktemp('parts'))


def build(parts, *options):
    torch.manual_seed(0)
    cfg = launch.load_config(PRETRAIN, [*model_options(parts[1]), *options])
    return FreeATMBlipPretrain.from_config(cfg.model_cfg)


def pairs(store, grid=2):
    return FreeATMPretrainDataset(
        WholeView(16), FreeATMCaptionProcessor(), [StorePairs(store, None, 0.45)], mask_grid=grid
    )


def batch(store, **more):
    dataset = pairs(store)
    samples = dataset.collater([dataset[index] for index in range(8)])
    return {**samples, 'epoch': 0, 'iters': 0, 'num_iters_per_epoch': 3, **more}


def test_items_and_batches_have_the_masks_of_their_nouns(parts):
    dataset = pairs(parts[0], grid=4)
    items = [dataset[index] for index in range(4)]
    assert [len(item['nouns']) for item in items] == [0, 1, 2, 3]
    for index, item in enumerate(items):
        raw = dataset.sources[0].store.read(index)
        assert item['nouns'] == [[name] for name in raw.names()]
        for thing, cover in zip(objects_from_masks(raw.names(), raw.masks()), item['noun_masks']):
            cells = np.zeros((8, 8))
            for x, y, _, _ in thing.parts * 8:
                cells[round(y), round(x)] = 1
            np.testing.assert_allclose(cover, cells.reshape(4, 2, 4, 2).mean((1, 3)), atol=1e-6)
    found = dataset.collater(items)
    assert found['noun_samples'].tolist() == [1, 2, 2, 3, 3, 3]
    assert found['noun_masks'].shape == (6, 4, 4) and len(found['nouns']) == 6
    assert found['image'].shape[0] == len(found['text_input']) == 4
    none = dataset.collater(items[:1])
    assert none['noun_masks'].shape == (0, 4, 4) and none['noun_samples'].tolist() == []


def test_masks_follow_the_view(parts):
    class Flipped(WholeView):
        def with_view(self, image):
            return self(image.transpose(0)), flip_matrix()

    plain, dataset = pairs(parts[0], grid=8), pairs(parts[0], grid=8)
    dataset.vis_processor = Flipped(16)
    assert torch.equal(plain[3]['noun_masks'].flip(2), dataset[3]['noun_masks'])


def test_nouns_are_found_as_the_caption_writes_them(tmp_path):
    store, names = make_store_of_spellings(tmp_path / 'store')
    item = pairs(store)[0]
    assert item['nouns'] == [['dog', 'dogs'], ['cat', 'domestic cat']]
    assert names == ['dog', 'dog', 'dog', 'domestic cat']


def test_objects_of_one_noun_are_one(parts):
    """Of their masks whatever one of them covers counts, and once."""
    dataset = pairs(parts[0])
    corners = [[0, 0, 0.5, 0.5]], [[0, 0, 0.5, 0.5], [0.5, 0, 0.75, 0.5]], [[0, 0, 1, 1]]
    things = [PlacedObject(name, np.array(box)) for name, box in zip('Xxy', corners)]
    found = dataset._masks(things, WHOLE_VIEW, 2)
    assert found['nouns'] == [['x'], ['y']]
    assert found['noun_masks'].tolist() == [[[1, 0.5], [0, 0]], [[1, 1], [1, 1]]]


def test_an_unknown_word_is_in_no_text(parts):
    tokenizer = build(parts).tokenizer
    ids = tokenizer('a zebra has a dog').input_ids
    assert tokenizer.unk_token_id in ids
    nouns = [['zebra', 'giraffe', 'zebra has'], ['zebra', 'dog']]
    dog = ids.index(*tokenizer.ids_of('dog'))
    assert places_of(tokenizer, [ids], [0, 0], nouns) == [[], [dog]]


def test_a_noun_within_a_longer_one_is_the_longer_one(parts):
    tokenizer = build(parts).tokenizer
    texts = tokenizer(['a photo dog is a dog', 'a photo dog']).input_ids
    nouns = [['dog'], ['photo dog', 'dog photo'], ['dog'], ['photo', 'a photo']]
    assert places_of(tokenizer, texts, [0, 0, 1, 1], nouns) == [[6], [2, 3], [3], [1, 2]]


CAPTION = 'A dog is in the photo.'


@pytest.mark.parametrize(
    ('options', 'own'),
    [
        ({}, ['a dog is in the photo', 'dog', 'block', 'the']),
        ({'preset': 'none'}, ['a dog is in the photo']),
        ({'preset': 'none', 'prompt': 'a photo of '}, ['a dog is in the photo']),
        ({'prompt': 'the dog: '}, ['a dog is in the photo', 'dog', 'block', 'the']),
        (
            {'preset': 'ptp', 'max_objects': 9, 'index_base': 1},
            ['a dog is in the photo', 'dog', 'block', 'the'],
        ),
        (
            {'template': '[P]: the BLOCK, (block-[O]) [O] is "[O]" ', 'order': 'block'},
            ['a dog is in the photo', *['the'] * 3, *['block'] * 3, *['dog'] * 3],
        ),
        ({'template': '[O]  [P].', 'positions': 'others'}, ['a dog is in the photo', 'dog', *'bt']),
    ],
)
def test_captions_and_names_are_told_from_the_template(parts, options, own):
    """Whatever the template: its own words are in no part, and all others in theirs."""
    own = [{'b': 'block', 't': 'the'}.get(part, part) for part in own]
    things = [
        PlacedObject(name, np.array([box]))
        for name, box in (
            ('Dog', [0.8, 0.8, 1, 1]),
            ('block', [0.4, 0.4, 0.6, 0.6]),
            ('The', [0, 0, 0.1, 0.1]),
        )
    ]
    processor = FreeATMCaptionProcessor.from_config(options)
    text, spans = processor.with_spans(CAPTION, things, WHOLE_VIEW, things)
    assert [text[start:end] for start, end in spans] == own
    tokenizer = build(parts).tokenizer
    numbers = tokenizer.spans_of_tokens(text, spans)
    ids = tokenizer(text).input_ids
    for number, part in enumerate(own):
        there = [ids[place] for place, each in enumerate(numbers) if each == number]
        assert there == tokenizer(part, add_special_tokens=False).input_ids
    if options.get('positions') != 'others':
        assert text == processor(CAPTION, things)


def test_a_noun_is_not_found_in_the_words_of_a_template(parts):
    """Nor across the border of two parts; the block that is an object is found as that alone."""
    tokenizer = build(parts).tokenizer
    texts = ['a dog dog is in block 4', 'a block block is in block 4']
    spans = [[(0, 5), (6, 9)], [(0, 7), (8, 13)]]
    ids = tokenizer(texts, padding=True).input_ids
    numbers = [tokenizer.spans_of_tokens(*each) for each in zip(texts, spans)]
    nouns = [['block'], ['dog'], ['dog dog'], ['4'], ['block']]
    samples = [0, 0, 0, 0, 1]
    assert places_of(tokenizer, ids, samples, nouns, numbers) == [[], [2, 3], [], [], [2, 3]]
    assert places_of(tokenizer, ids, samples, nouns)[0] == [6]


def test_neither_loss_nor_pointing_looks_at_the_template(parts):
    """Where only the template writes a noun, it is counted as not written."""
    prompts = FreeATMCaptionProcessor.from_config({'prompt': 'the '})
    source = StorePairs(parts[0], None, 0.45)
    dataset = FreeATMPretrainDataset(WholeView(16), prompts, [source], mask_grid=2)
    samples = dataset.collater([dataset[index] for index in range(8)])
    assert len(samples['noun_spans']) == 8 and 'block' in samples['text_input'][1]
    named, masks = dataset.__getitem__, samples['noun_masks']
    model = build(parts, 'model.mask_loss=1')
    for word, unwritten in (('block', 12), ('the', 12), ('photo', 0)):
        steps = {'epoch': 0, 'iters': 0, 'num_iters_per_epoch': 3}
        model({**samples, **steps, 'nouns': [[word]] * len(masks)})
        assert model.take_text_counts()['nouns_not_in_text'] == unwritten, word

        class Renamed(FreeATMPretrainDataset):
            def __getitem__(self, index, word=word):
                item = named(index)
                return {**item, 'nouns': [[word]] * len(item['nouns'])}

        renamed = Renamed(WholeView(16), prompts, [source], mask_grid=2)
        assert point(model, renamed, limit=8).unwritten == unwritten, word


def test_what_stands_before_captions_of_another_processor_is_not_the_caption(parts):
    source = StorePairs(parts[0], None, 0.45)
    for before in ('', 'a photo of a '):
        processor = BlipCaptionProcessor(before, max_words=4)
        item = FreeATMPretrainDataset(WholeView(16), processor, [source], mask_grid=2)[1]
        ((start, end),) = item['noun_spans']
        assert item['text_input'] == before + item['text_input'][start:end] and start == len(before)


@pytest.mark.parametrize(
    ('text', 'word', 'places'),
    [
        ([1, 5, 6, 2, 5, 6], [5, 6], [range(1, 3), range(4, 6)]),
        ([1, 5, 9, 2, 5, 6], [5], [range(4, 5)]),  # 9 goes on with the word before it
        ([5, 5, 5], [5, 5], [range(2), range(1, 3)]),
        ([1, 2], [], []),
        ([5], [5, 6], []),
    ],
)
def test_words_are_found(text, word, places):
    assert find_words(text, word, {9}) == places


def test_recorded_attention_is_that_of_lavis(parts):
    model = build(parts).eval()
    layer = model.text_encoder.encoder.layer[0].crossattention.self
    layer.save_attention = True  # LAVIS's own way, which needs gradients
    samples = batch(parts[0])
    pictures = model.visual_encoder.forward_features(samples['image'])
    text = model.tokenizer(list(samples['text_input']), padding='longest', return_tensors='pt')
    options = {
        'attention_mask': text.attention_mask,
        'encoder_hidden_states': pictures,
        'encoder_attention_mask': torch.ones(pictures.shape[:-1], dtype=torch.long),
        'return_dict': True,
    }
    with record_matching(model.text_encoder, [0]) as calls:
        recorded = model.text_encoder(text.input_ids, **options).last_hidden_state
        model.text_encoder.forward_text(text)  # reads no picture, and isn't recorded
    assert len(calls) == 1 and torch.equal(calls[0].ids, text.input_ids)
    assert torch.equal(calls[0].attention[0], layer.get_attention_map())
    assert torch.equal(model.text_encoder(text.input_ids, **options).last_hidden_state, recorded)
    assert not layer.dropout._forward_pre_hooks


def test_attention_and_loss_by_hand():
    attention = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).softmax(-1)
    found = attention_of_nouns(attention, [0, 1], [[1], [2, 3]])
    by_hand = attention[1, :, 2:4, 1:].sum((0, 1))
    torch.testing.assert_close(found[1], by_hand / by_hand.sum())
    assert torch.allclose(found.sum(1), torch.ones(2))
    masks = torch.tensor([[1.0, 0, 0, 0], [0, 0.5, 1, 0]])
    shares = [found[0, 0], 0.5 * found[1, 1] + found[1, 2]]
    expected = -(torch.log(shares[0]) + torch.log(shares[1])) / 2
    torch.testing.assert_close(mask_consistency(found, masks), expected)
    assert mask_consistency(found[:0], masks[:0]) == 0
    assert mask_consistency(found, torch.ones(2, 4)).abs() < 1e-6
    elsewhere = torch.tensor([[0.0, 1]], requires_grad=True)
    mask_consistency(elsewhere, torch.tensor([[1.0, 0]])).backward()
    assert torch.isfinite(elsewhere.grad).all() and elsewhere.grad[0, 0] < 0


def test_the_other_losses_stay_those_of_lavis(parts):
    plain, held = build(parts), build(parts, 'model.mask_loss=0.7')
    assert plain.state_dict().keys() == held.state_dict().keys()
    masked = batch(parts[0])
    unmasked = {key: value for key, value in masked.items() if not key.startswith('noun')}
    outputs = []
    for model, samples in ((plain, unmasked), (held, masked)):
        torch.manual_seed(1)
        outputs.append(model.train()(samples))
    for name in ('loss_itc', 'loss_itm', 'loss_lm'):
        assert torch.equal(outputs[0][name], outputs[1][name]), name
    expected = outputs[0].loss + 0.7 * outputs[1].loss_mask
    assert torch.equal(outputs[1]['loss'], expected) and outputs[1].loss_mask > 0
    counts = held.take_text_counts()
    assert counts['nouns'] == 12 and counts['nouns_not_in_text'] == 0
    assert held.take_text_counts()['nouns'] == 0 and 'nouns' not in plain.take_text_counts()


def test_it_teaches_attention_to_lie_on_the_objects(parts):
    shares = {}
    for weight in (1e-9, 10):  # so small a weight is a control that is measured alike
        model = build(parts, f'model.mask_loss={weight}', 'model.bert.hidden_dropout_prob=0')
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for step in range(40):
            torch.manual_seed(step)
            output = model(batch(parts[0]))
            output.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        shares[weight] = output.loss_mask.item()
    assert shares[10] < 0.8 * shares[1e-9]


@pytest.mark.parametrize(
    ('options', 'change', 'message'),
    [
        (['model.mask_loss=1'], {'noun_masks': None}, r'mask_loss needs masks: set .*mask_grid=2'),
        ([], {}, 'mask_grid has no effect without model.mask_loss'),
        (['model.mask_loss=1'], {'noun_masks': torch.ones(12, 4, 4)}, '4 x 4 cells.*2 x 2 patches'),
    ],
)
def test_masks_must_fit_the_model(parts, options, change, message):
    model = build(parts, *options)
    with pytest.raises(InputError, match=message):
        model(batch(parts[0], **change))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['model.mask_layer=0'], 'mask_layer has no effect without model.mask_loss'),
        (
            ['model.mask_loss=1', 'model.mask_layer=1'],
            r'mask_layer must be one of the layers that look at the picture, \[0\], got 1',
        ),
        (['model.mask_loss=1', 'model.bert.add_cross_attention=False'], r'picture, \[\], got 0'),
        (['model.mask_loss=-1'], 'mask_loss must be a number of at least 0'),
    ],
)
def test_settings_that_cannot_be_used_are_refused(parts, options, message):
    with pytest.raises(InputError, match=message):
        build(parts, *options)


def test_a_run_trains_with_it_and_says_so(parts, tmp_path, caplog):
    options = [*pretrain_options(*parts, tmp_path), 'run.max_epoch=1', 'model.mask_loss=0.5']
    with pytest.raises(InputError, match='mask_loss needs masks'):  # before the first step
        launch.train(PRETRAIN, options)
    no_prompts = 'datasets.freeatm_pretrain.text_processor.train.preset=none'
    launch.train(PRETRAIN, [*options, f'{GRID}=2', no_prompts])
    line = json.loads((tmp_path / 'log.txt').read_text().splitlines()[-1])
    whole = sum(line[f'train_loss_{part}'] for part in ('itc', 'itm', 'lm'))
    assert line['train_loss'] == pytest.approx(whole + 0.5 * line['train_loss_mask'], rel=1e-5)
    assert line['train_nouns'] == 18 and line['train_nouns_not_in_text'] == 0
    content = read_state(tmp_path / 'checkpoint_0.pth')
    assert content['pretraining']['masks'] == 'no prompts, mask_loss=0.5'


def test_masks_that_no_pair_has_are_refused_or_told(parts, tmp_path, caplog):
    bare = make_store(tmp_path / 'bare', count=4, size=(20, 20), nouns=(0,))
    options = [*pretrain_options(bare, parts[1], tmp_path), 'run.max_epoch=1', 'model.mask_loss=1']
    no_prompts = 'datasets.freeatm_pretrain.text_processor.train.preset=none'
    with pytest.raises(
        InputError, match=r'^masks \(mask_grid\) are of objects, and no pair has any'
    ):
        launch.train(PRETRAIN, [*options, f'{GRID}=2', no_prompts])
    # One pair of five has one, and is not among the four that are drawn.
    few = make_store(tmp_path / 'few', count=5, size=(20, 20), nouns=(0, 1, 0, 0, 0))
    options = [*pretrain_options(few, parts[1], tmp_path), 'run.max_epoch=1', 'model.mask_loss=1']
    drawn = [f'{GRID}=2', 'datasets.freeatm_pretrain.build_info.share=0.8']
    launch.train(PRETRAIN, [*options, *drawn])
    assert 'no pair of this epoch has a mask of a noun: model.mask_loss has no eff' in caplog.text
    assert 'no text of this epoch holds a position prompt' in caplog.text
    assert json.loads((tmp_path / 'log.txt').read_text().splitlines()[-1])['train_prompted'] == 0


def test_nouns_that_texts_do_not_write_are_counted(parts, caplog):
    model = build(parts, 'model.mask_loss=1')
    samples = batch(parts[0])
    output = model({**samples, 'nouns': [['drum kit']] * 12})
    assert output.loss_mask == 0
    assert model.take_text_counts()['nouns_not_in_text'] == 12


def test_pointing_counts_what_lies_on_the_objects(parts, tmp_path):
    """With a patch that draws all attention, the hits are the masks at that patch."""
    model = build(parts).eval()
    store = make_store(tmp_path / 'store', count=10, size=(16, 16), mask_size=(8, 8), seed=3)
    attention = model.text_encoder.encoder.layer[0].crossattention.self
    dataset = pairs(store)
    masks = torch.cat([dataset[index]['noun_masks'] for index in range(10)]).flatten(1)
    kept = masks[(masks >= 0.5).any(1)]
    for patch in range(4):

        def look(module, inputs, output, patch=patch):
            everything = torch.zeros(output.shape)
            everything[:, 1 + patch] = 100
            return everything

        hooks = [
            attention.query.register_forward_hook(lambda m, i, output: torch.ones_like(output)),
            attention.key.register_forward_hook(look),
        ]
        found = point(model, dataset, batch_size=3)
        for hook in hooks:
            hook.remove()
        assert found.hits[0] == (kept[:, patch] >= 0.5).tolist()
    assert found.nouns == len(masks) and found.small == len(masks) - len(kept)
    assert found.centre == (kept[:, 3] >= 0.5).tolist()
    assert np.mean(found.covered) == pytest.approx((kept >= 0.5).float().mean().item())
    assert len(point(model, dataset, limit=2).centre) < len(found.centre)


def test_pointing_counts_nouns_that_captions_do_not_write(parts, monkeypatch):
    """A text of six tokens holds one noun of three; and each batch is fetched at once."""
    fetched, at_hand = [], FreeATMPretrainDataset.at_hand
    monkeypatch.setattr(
        FreeATMPretrainDataset,
        'at_hand',
        lambda self, indices: fetched.append(len(indices)) or at_hand(self, indices),
    )
    model, dataset = build(parts, 'model.max_txt_len=6').eval(), pairs(parts[0])
    found = point(model, dataset, batch_size=3, limit=4)
    assert found.nouns == 6 and found.unwritten == 6
    found = point(build(parts, 'model.max_txt_len=7').eval(), dataset, limit=4)
    assert (found.nouns, found.unwritten, len(found.centre) + found.small) == (6, 3, 3)
    assert point(model, dataset, limit=1).nouns == 0
    assert fetched == [3, 1, 4, 1]
