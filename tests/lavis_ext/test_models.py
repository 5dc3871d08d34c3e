"""The models: LAVIS's losses bit for bit, and checkpoints that leave nothing missing."""

from __future__ import annotations

import inspect
import json
import logging
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip('lavis')

from helpers.tiny_blip import FINETUNE, PRETRAIN, ZEROSHOT, make_tokenizer, model_options  # noqa: E402
from lavis.models.blip_models.blip import BlipBase  # noqa: E402
from lavis.models.blip_models.blip_pretrain import BlipPretrain  # noqa: E402
from lavis.models.blip_models.blip_retrieval import BlipRetrieval  # noqa: E402
from lavis.models.med import XBertEncoder, XBertLMHeadDecoder  # noqa: E402
from lavis.runners.runner_base import RunnerBase  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402

from freeatm_mm.checkpoints import load_weights  # noqa: E402
from freeatm_mm.errors import InputError, MissingFileError  # noqa: E402
from freeatm_mm.lavis_ext import models  # noqa: E402
from freeatm_mm.lavis_ext.launch import load_config  # noqa: E402
from freeatm_mm.lavis_ext.models import FreeATMBlipPretrain, FreeATMBlipRetrieval  # noqa: E402
from freeatm_mm.lavis_ext.tokenizer import load_tokenizer  # noqa: E402

TEXTS = ['a photo of a dog', 'a bird', 'a lamp the lamp is in block 3', 'a photo of a boat']


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp('tokenizer'))


def config(tokenizer, *options, path=PRETRAIN):
    return load_config(path, [*model_options(tokenizer), *options]).model_cfg


@pytest.fixture(scope='module')
def model(tokenizer):
    torch.manual_seed(0)
    return FreeATMBlipPretrain.from_config(config(tokenizer, 'model.max_txt_len=12'))


def lavis_pretrain(tokenizer, monkeypatch):
    """LAVIS's own model of the same sizes, with the one thing it would download handed over."""
    monkeypatch.setattr(
        BlipBase, 'init_tokenizer', classmethod(lambda cls: load_tokenizer(tokenizer))
    )
    cfg = config(tokenizer)
    image = models._image_encoder(cfg)
    bert = models._bert_config(cfg, image, load_tokenizer(tokenizer).vocab_size)
    return BlipPretrain(
        image,
        XBertEncoder(config=bert, add_pooling_layer=False),
        XBertLMHeadDecoder(config=bert),
        queue_size=24,
        embed_dim=6,
        max_txt_len=12,
    )


def batch(step=0, **more):
    torch.manual_seed(step)
    return {
        'image': torch.randn(4, 3, 16, 16),
        'text_input': TEXTS,
        'epoch': 0,
        'iters': step,
        'num_iters_per_epoch': 3,
        **more,
    }


def train_steps(model, count=3):
    """Losses, gradients' sum and queues of some steps."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    found = []
    for step in range(count):
        samples = batch(step)
        output = model(samples)
        output.loss.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        optimizer.step()
        optimizer.zero_grad()
        found += [
            output.loss_itc,
            output.loss_itm,
            output.loss_lm,
            *gradients,
            model.image_queue.clone(),
            model.text_queue.clone(),
        ]
    return found


def test_losses_are_those_of_lavis_bit_for_bit(tokenizer, monkeypatch):
    torch.manual_seed(3)
    ours = FreeATMBlipPretrain.from_config(config(tokenizer, 'model.max_txt_len=12'))
    theirs = lavis_pretrain(tokenizer, monkeypatch)
    state = ours.state_dict()
    assert set(state) - set(theirs.state_dict()) == {'idx_queue'}
    theirs.load_state_dict({name: value for name, value in state.items() if name != 'idx_queue'})
    first, second = train_steps(ours), train_steps(theirs)
    assert len(first) == len(second) > 100
    assert all(torch.equal(one, other) for one, other in zip(first, second))


def test_texts_that_are_cut_are_counted(model):
    model.take_text_counts()
    model(batch(text_input=['a dog', 'a dog ' * 6, 'a dog ' * 5, '']))
    assert model.take_text_counts() == {'texts': 4, 'empty': 1, 'truncated': 1, 'lost_tokens': 2}
    assert model.take_text_counts() == {'texts': 0, 'empty': 0, 'truncated': 0, 'lost_tokens': 0}


@pytest.fixture
def checkpoint(model, tmp_path):
    path = tmp_path / 'checkpoint_1.pth'
    torch.save({'model': model.state_dict()}, path)
    return path


def check_same(retrieval, model):
    own, source = retrieval.state_dict(), model.state_dict()
    assert [name for name in own if not torch.equal(own[name], source[name])] in (
        [],
        ['queue_ptr'],
    )  # which starts anew


def test_retrieval_finds_everything(model, checkpoint, tokenizer, caplog):
    with caplog.at_level(logging.INFO):
        retrieval = FreeATMBlipRetrieval.from_config(
            config(tokenizer, f'model.pretrained={checkpoint}', path=FINETUNE)
        )
    own = len(retrieval.state_dict())
    decoder = sum(name.startswith('text_decoder.') for name in model.state_dict())
    assert (
        f"{own} of {own} tensors loaded (0 interpolated), 0 of the model's left as they were, "
        f'{decoder} unused'
    ) in caplog.text
    check_same(retrieval, model)


def test_lavis_own_retrieval_finds_everything(model, checkpoint, tokenizer, monkeypatch, caplog):
    monkeypatch.setattr(
        BlipBase, 'init_tokenizer', classmethod(lambda cls: load_tokenizer(tokenizer))
    )
    cfg = config(tokenizer, path=FINETUNE)
    image = models._image_encoder(cfg)
    bert = models._bert_config(cfg, image, len(load_tokenizer(tokenizer)))
    retrieval = BlipRetrieval(
        image, XBertEncoder(config=bert, add_pooling_layer=False), queue_size=24, embed_dim=6
    )
    message = retrieval.load_from_pretrained(str(checkpoint))
    assert message.missing_keys == []
    check_same(retrieval, model)


def test_a_checkpoint_of_lavis_gets_momentum_encoders(model, tokenizer, tmp_path, caplog):
    """LAVIS leaves out what takes no gradient; its own retrieval model then stops with KeyError."""
    frozen = {name for name, value in model.named_parameters() if not value.requires_grad}
    state = {
        name: value
        for name, value in model.state_dict().items()
        if name not in frozen and name != 'idx_queue'
    }
    torch.save({'model': state}, tmp_path / 'lavis.pth')
    retrieval = FreeATMBlipRetrieval.from_config(
        config(tokenizer, f'model.pretrained={tmp_path / "lavis.pth"}', path=FINETUNE)
    )
    assert f'{len(frozen)} tensors are copies of the online ones' in caplog.text
    assert torch.equal(retrieval.text_proj_m.weight, model.text_proj.weight)
    caplog.clear()
    again = FreeATMBlipPretrain.from_config(  # further pretraining says so too
        config(tokenizer, f'model.pretrained={tmp_path / "lavis.pth"}')
    )
    assert f'{len(frozen)} tensors are copies of the online ones' in caplog.text
    assert torch.equal(again.text_proj_m.weight, model.text_proj.weight)


def test_pretrainings_of_lavis_and_ours_read_each_others_files(tokenizer, monkeypatch, tmp_path):
    """Written and read by LAVIS's own code on its side."""
    theirs = lavis_pretrain(tokenizer, monkeypatch)
    runner = SimpleNamespace(
        model=theirs,
        unwrap_dist_model=lambda model: model,
        optimizer=torch.optim.AdamW(theirs.parameters()),
        config=SimpleNamespace(to_dict=lambda: {'datasets': {'coco_caption': {}}}),
        scaler=None,
        output_dir=tmp_path,
    )
    inspect.unwrap(RunnerBase._save_checkpoint)(runner, 3)
    ours = FreeATMBlipPretrain.from_config(
        config(tokenizer, f'model.pretrained={tmp_path / "checkpoint_3.pth"}', 'model.mask_loss=1')
    )
    kept = {name for name, value in theirs.named_parameters() if value.requires_grad}
    assert kept and all(torch.equal(theirs.state_dict()[n], ours.state_dict()[n]) for n in kept)
    with torch.no_grad():
        for value in ours.parameters():
            value.add_(1)
    torch.save({'model': ours.state_dict()}, tmp_path / 'ours.pth')
    found = theirs.load_checkpoint(str(tmp_path / 'ours.pth'))
    assert (found.missing_keys, found.unexpected_keys) == ([], ['idx_queue'])
    assert all(torch.equal(value, ours.state_dict()[n]) for n, value in theirs.named_parameters())


def test_a_fine_tuned_checkpoint_of_lavis_can_be_judged(
    model, checkpoint, tokenizer, tmp_path, caplog
):
    retrieval = FreeATMBlipRetrieval.from_config(
        config(tokenizer, f'model.pretrained={checkpoint}', path=FINETUNE)
    )
    frozen = {name for name, value in retrieval.named_parameters() if not value.requires_grad}
    torch.save(
        {
            'model': {
                name: value for name, value in retrieval.state_dict().items() if name not in frozen
            }
        },
        tmp_path / 'best.pth',
    )
    again = FreeATMBlipRetrieval.from_config(
        config(
            tokenizer,
            'model.load_finetuned=True',
            f'model.finetuned={tmp_path / "best.pth"}',
            path=ZEROSHOT,
        )
    )
    assert f'{len(frozen)} tensors are copies of the online ones' in caplog.text
    assert torch.equal(again.itm_head.weight, retrieval.itm_head.weight)


def test_a_fine_tuned_checkpoint_of_the_original_code_can_be_judged(
    model, checkpoint, tokenizer, tmp_path
):
    """It calls the queue's place `ptr_queue`, as PTP's does, which is made from it."""
    state = {
        'ptr_queue' if name == 'queue_ptr' else name: value
        for name, value in model.state_dict().items()
        if not name.startswith('text_decoder.')
    }
    torch.save({'model': state, 'config': {'k_test': 256}, 'epoch': 5}, tmp_path / 'best.pth')
    retrieval = FreeATMBlipRetrieval.from_config(
        config(
            tokenizer,
            'model.load_finetuned=True',
            f'model.finetuned={tmp_path / "best.pth"}',
            path=ZEROSHOT,
        )
    )
    check_same(retrieval, model)


@pytest.mark.parametrize(
    'options, rate',
    [
        (['model.vit_type=base'], 0),
        (['model.vit_type=base', 'model.vit_drop_path_rate=0.4'], 0.4),
        (['model.vit_type=large'], 0.1),  # LAVIS's own, whatever it is told
        (['model.vit_type=large', 'model.vit_drop_path_rate=0.4'], 0.4),
        (['model.vit_type=large', 'model.vit_drop_path_rate=0.0'], 0),
    ],
)
def test_paths_are_dropped_at_the_rate_that_is_given(tokenizer, options, rate):
    cfg = config(tokenizer, 'model.vit.depth=2', *options)
    last = models._image_encoder(cfg).blocks[-1].drop_path
    assert getattr(last, 'drop_prob', 0) == pytest.approx(rate)


def test_larger_images_and_other_queues(model, checkpoint, tokenizer, caplog):
    with caplog.at_level(logging.INFO):
        retrieval = FreeATMBlipRetrieval.from_config(
            config(
                tokenizer,
                f'model.pretrained={checkpoint}',
                'model.image_size=32',
                'model.queue_size=48',
                path=FINETUNE,
            )
        )
    assert "(2 interpolated), 4 of the model's left as they were" in caplog.text
    assert retrieval.visual_encoder.pos_embed.shape[1] == 17
    assert torch.equal(
        retrieval.visual_encoder.pos_embed[:, 0], model.visual_encoder.pos_embed[:, 0]
    )
    assert (retrieval.idx_queue == -100).all()


def test_pretraining_goes_on_from_another(model, checkpoint, tokenizer):
    again = FreeATMBlipPretrain.from_config(config(tokenizer, f'model.pretrained={checkpoint}'))
    for name, value in model.state_dict().items():
        if name != 'queue_ptr':
            assert torch.equal(again.state_dict()[name], value), name


def test_a_checkpoint_that_does_not_fit_is_refused(model, tokenizer, tmp_path):
    def load(state):
        torch.save(state, tmp_path / 'x.pth')
        return FreeATMBlipRetrieval.from_config(
            config(tokenizer, f'model.pretrained={tmp_path / "x.pth"}', path=FINETUNE)
        )

    state = model.state_dict()
    with pytest.raises(ValueError, match='lacks itm_head.weight$'):
        load({name: value for name, value in state.items() if name != 'itm_head.weight'})
    with pytest.raises(ValueError, match='holds for no part of the model extra'):
        load({**state, 'extra': torch.zeros(1)})
    with pytest.raises(ValueError, match='has in another shape itm_head.bias'):
        load({**state, 'itm_head.bias': torch.zeros(3)})
    places = 'visual_encoder.pos_embed'
    for wrong in (
        torch.zeros(1, 1, 8),  # of no patch
        torch.zeros(1, 0, 8),
        torch.zeros(1, 7, 8),  # of no square
        torch.zeros(1, 17, 12),
        torch.zeros(1, 17, 8, dtype=torch.long),
    ):
        with pytest.raises(ValueError, match=f'has in another shape {places}$'):
            load({**state, places: wrong})
    with pytest.raises(ValueError, match='holds no weights'):
        load([1, 2])
    (tmp_path / 'half.pth').write_bytes((tmp_path / 'x.pth').read_bytes()[:50])
    with pytest.raises(ValueError, match="half.pth can't be read"):
        load_weights(tmp_path / 'half.pth')


@pytest.mark.parametrize(
    'options, path, message',
    [
        (['model.pretrained=no/such.pth'], ZEROSHOT, 'there is no checkpoint no/such.pth'),
        ([], ZEROSHOT, 'set model.pretrained'),
        (['model.load_finetuned=True'], ZEROSHOT, 'model.load_finetuned=True and model.finetuned'),
        (['model.image_weights=no/deit.pth'], PRETRAIN, 'there is no checkpoint no/deit.pth'),
        (['model.text_weights=no/bert'], PRETRAIN, 'no folder of text weights no/bert'),
        (['model.vit_type=huge'], PRETRAIN, 'vit_type must be one of base, large'),
        (['model.vit.width=3'], PRETRAIN, 'model.vit has no width'),
        (['model.max_txt_len=65'], PRETRAIN, "more than the text model's 64 positions"),
        (['model.tokenizer=configs'], PRETRAIN, 'holds no tokenizer'),
        (['model.text_weights=configs'], PRETRAIN, 'the folder configs holds no text weights'),
        (
            ['model.max_text_len=40'],
            PRETRAIN,
            r'model has no max_text_len; did you mean max_txt_len\?',
        ),
        (
            ['model.max_text_len=40'],
            ZEROSHOT,
            r'model has no max_text_len; did you mean max_txt_len\?',
        ),
        (['model.momentun=0.9'], PRETRAIN, r'model has no momentun; did you mean momentum\?'),
        (
            ['model.momentum=1.5'],
            PRETRAIN,
            'model.momentum must be a number of at least 0 and at most',
        ),
        (['model.queue_size=0'], PRETRAIN, 'model.queue_size must be an integer of at least 1 and'),
        (
            ['model.bert.hiden_size=8'],
            PRETRAIN,
            'model.bert has no hiden_size; did you mean hidden_s',
        ),
        (['model.bert.classifier_dropout=0.5'], PRETRAIN, 'model.bert has no classifier_dropout'),
        (['model.bert.vocab_size=9'], PRETRAIN, 'vocab_size and encoder_width follow from'),
        (['model.bert=3'], PRETRAIN, 'model.bert must hold names and values, got 3'),
        (['model.vit.num_heads=3'], PRETRAIN, 'embed_dim 8 must be a multiple of vit.num_heads 3'),
        (['model.image_size=20'], PRETRAIN, 'image_size 20 must be a multiple of vit.patch_size 8'),
        (['model.tokenizer=null'], PRETRAIN, 'model.tokenizer must be a folder'),
        (
            ['model.finetuned=x.pth'],
            PRETRAIN,
            'model has no finetuned: freeatm_blip_pretrain starts',
        ),
        (
            ['model.finetuned=x.pth'],
            ZEROSHOT,
            'model.finetuned is read with model.load_finetuned=True',
        ),
        (
            ['model.pretrained=x.pth', 'model.load_pretrained=False'],
            ZEROSHOT,
            'set model.pretrained',
        ),
        # A name where a folder is wanted, on a machine without a network.
        (['model.tokenizer=bert-base-uncased'], PRETRAIN, 'no tokenizer bert-base-uncased: it is'),
        (
            ['model.text_weights=bert-base-uncased'],
            PRETRAIN,
            'no folder of text weights bert-base-unc',
        ),
        (['model.vit_grad_ckpt=True'], PRETRAIN, 'saves no memory with vit_ckpt_layer 0'),
        (['model.vit_ckpt_layer=1'], PRETRAIN, 'has no effect without model.vit_grad_ckpt=True'),
        (["model.bert.initializer_range='0.02'"], PRETRAIN, 'initializer_range must be a number'),
        (["model.momentum='0.9'"], PRETRAIN, "model.momentum must be a number .*, got '0.9'"),
        (
            ['model.pretrained=x.pth', 'model.load_finetuned=True', 'model.finetuned=y.pth'],
            ZEROSHOT,
            'model.pretrained is not read with model.load_finetuned=True: leave one',
        ),
    ],
)
def test_wrong_settings_are_told(tokenizer, options, path, message):
    cfg = config(tokenizer, *options, path=path)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as told:
        (FreeATMBlipPretrain if path == PRETRAIN else FreeATMBlipRetrieval).from_config(cfg)
    assert '\n' not in str(told.value)


def test_an_unknown_type_of_model_is_told(tokenizer):
    with pytest.raises(ValueError, match="one of base, got 'huge'"):
        config(tokenizer, 'model.model_type=huge')


def test_momentum_encoders_keep_their_own_weights_under_checkpointing(tokenizer):
    """In LAVIS alone a copied reference has them compute with the online ones'."""
    torch.manual_seed(0)
    model = FreeATMBlipPretrain.from_config(
        config(tokenizer, 'model.vit_grad_ckpt=True', 'model.vit_ckpt_layer=1')
    ).train()
    image = torch.randn(2, 3, 16, 16)
    online, momentum = (
        encoder(image) for encoder in (model.visual_encoder, model.visual_encoder_m)
    )
    assert torch.equal(online, momentum)
    with torch.no_grad():
        model.visual_encoder_m.blocks[0].mlp.fc1.weight.mul_(2)
        model.visual_encoder.blocks[0].attn.proj.weight.mul_(3)
    assert not torch.equal(model.visual_encoder_m(image), momentum)
    assert not torch.equal(model.visual_encoder(image), model.visual_encoder_m(image))
    plain = FreeATMBlipPretrain.from_config(config(tokenizer)).train()
    plain.load_state_dict(model.state_dict())
    for part in ('visual_encoder', 'visual_encoder_m'):
        assert torch.equal(getattr(plain, part)(image), getattr(model, part)(image))
    model.visual_encoder(image).sum().backward()
    plain.visual_encoder(image).sum().backward()
    for ours, theirs in zip(model.visual_encoder.parameters(), plain.visual_encoder.parameters()):
        assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize('old', [False, True])
def test_weights_from_local_files(tokenizer, tmp_path, old):
    """A ViT as DeiT saves it, a BERT as transformers does: both arrive, nothing is fetched."""
    from transformers import BertConfig, BertForMaskedLM

    cfg = config(tokenizer)
    source = models._image_encoder(cfg)
    torch.save(
        {'model': {**source.state_dict(), 'head.weight': torch.zeros(5, 8)}}, tmp_path / 'deit.pth'
    )
    words = load_tokenizer(tokenizer).vocab_size
    bert = BertForMaskedLM(
        BertConfig(
            vocab_size=words,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=64,
        )
    )
    bert.save_pretrained(tmp_path / 'bert')
    if old:  # as BERT's own files are
        (tmp_path / 'bert' / 'model.safetensors').unlink()
        names = {'LayerNorm.weight': 'LayerNorm.gamma', 'LayerNorm.bias': 'LayerNorm.beta'}
        state = {}
        for name, value in bert.state_dict().items():
            for new, former in names.items():
                name = name.replace(new, former)
            state[name] = value
        torch.save(state, tmp_path / 'bert' / 'pytorch_model.bin')
    model = FreeATMBlipPretrain.from_config(
        config(
            tokenizer,
            f'model.image_weights={tmp_path / "deit.pth"}',
            f'model.text_weights={tmp_path / "bert"}',
        )
    )
    for name, value in source.state_dict().items():
        assert torch.equal(model.visual_encoder.state_dict()[name], value)
        assert torch.equal(model.visual_encoder_m.state_dict()[name], value)
    inner, given = model.text_encoder.state_dict(), bert.bert.state_dict()
    for name in inner:
        if 'crossattention' in name or name == 'embeddings.position_ids':
            continue
        value = inner[name][:words] if 'word_embeddings' in name else inner[name]
        # LAVIS ties encoder and decoder but for self-attention; both start from BERT.
        assert torch.equal(value, given[name]), name
    assert torch.equal(model.text_encoder.embeddings.position_ids[0], torch.arange(64))
    assert torch.equal(
        model.text_decoder.cls.predictions.transform.dense.weight,
        bert.cls.predictions.transform.dense.weight,
    )


def test_text_weights_run_no_code_and_lead_nowhere(tokenizer, tmp_path):
    from helpers.hostile_checkpoints import reduced

    folder = tmp_path / 'bert'
    folder.mkdir()
    for name in ('elsewhere.bin', 'bert/pytorch_model.bin'):
        (tmp_path / name).write_bytes(reduced(tmp_path / 'marker'))
    changes = config(tokenizer, f'model.text_weights={folder}')
    with pytest.raises(InputError, match='it holds more than tensors'):
        FreeATMBlipPretrain.from_config(changes)
    (folder / 'pytorch_model.bin').unlink()
    index = {'metadata': {}, 'weight_map': {'bert.pooler.dense.bias': '../elsewhere.bin'}}
    (folder / 'pytorch_model.bin.index.json').write_text(json.dumps(index))
    with pytest.raises(MissingFileError, match='holds no text weights'):
        FreeATMBlipPretrain.from_config(changes)
    assert not (tmp_path / 'marker').exists()


def test_safetensors_are_read(model, tokenizer, tmp_path):
    from safetensors.torch import save_file

    save_file(
        {name: value.clone().contiguous() for name, value in model.state_dict().items()},
        tmp_path / 'x.safetensors',
    )
    retrieval = FreeATMBlipRetrieval.from_config(
        config(tokenizer, f'model.pretrained={tmp_path / "x.safetensors"}', path=FINETUNE)
    )
    check_same(retrieval, model)


class RetrievalSet:
    """Four pictures, five texts."""

    def __init__(self):
        torch.manual_seed(1)
        self.text = [*TEXTS, 'a photo of a lamp']
        self.image = ['x'] * 4
        self.batches = [{'image': torch.randn(2, 3, 16, 16)} for _ in range(2)]
        self.dataset = self

    def __iter__(self):
        return iter(self.batches)


def test_k_test_is_fitted_to_the_set(model, checkpoint, tokenizer, caplog):
    retrieval = FreeATMBlipRetrieval.from_config(
        config(tokenizer, f'model.pretrained={checkpoint}', path=FINETUNE)
    ).eval()
    with torch.no_grad():
        large = retrieval.compute_sim_matrix(RetrievalSet(), OmegaConf.create({'k_test': 256}))
        assert 'k_test is 256, and the set has 4 images and 5 texts: 4 are' in caplog.text
        fitting = retrieval.compute_sim_matrix(RetrievalSet(), OmegaConf.create({'k_test': 4}))
        with pytest.raises(RuntimeError, match='out of range'):  # LAVIS alone
            BlipRetrieval.compute_sim_matrix(
                retrieval, RetrievalSet(), OmegaConf.create({'k_test': 256})
            )
    assert (large[0] == fitting[0]).all() and (large[1] == fitting[1]).all()
    assert large[0].shape == (4, 5) and large[1].shape == (5, 4)


def test_more_processes_than_the_set_has_work_for_are_told(
    model, checkpoint, tokenizer, monkeypatch
):
    """LAVIS gives each n // processes + 1 rows: two, two and none of four images."""
    retrieval = FreeATMBlipRetrieval.from_config(
        config(tokenizer, f'model.pretrained={checkpoint}', path=FINETUNE)
    ).eval()
    monkeypatch.setattr(models, 'get_world_size', lambda: 3)
    with pytest.raises(ValueError, match='3 processes are too many to evaluate 4 images'):
        retrieval.compute_sim_matrix(RetrievalSet(), OmegaConf.create({'k_test': 4}))


def test_a_text_model_too_short_for_evaluation_is_told(tokenizer, checkpoint):
    options = ['model.max_txt_len=20', 'model.bert.max_position_embeddings=20']
    with pytest.raises(InputError, match='max_position_embeddings must be at least 35.*got 20'):
        FreeATMBlipRetrieval.from_config(
            config(tokenizer, f'model.pretrained={checkpoint}', *options, path=FINETUNE)
        )


def test_texts_that_judging_cuts_are_told(model, checkpoint, tokenizer, caplog):
    """LAVIS reads 35 tokens, whatever max_txt_len; those of training are counted apart."""
    retrieval = FreeATMBlipRetrieval.from_config(
        config(tokenizer, f'model.pretrained={checkpoint}', path=FINETUNE)
    ).eval()
    texts = RetrievalSet()
    texts.text[1], texts.text[3], texts.text[2] = 'a dog ' * 20, 'dog ' * 33, ''
    retrieval.tokenizer.counts['texts'] = 7
    with torch.no_grad():
        retrieval.compute_sim_matrix(texts, OmegaConf.create({'k_test': 4}))
    assert '1 of the 5 texts to be found were longer than the 35 tokens' in caplog.text
    assert 'and lost 7 tokens in all' in caplog.text
    assert '1 of the 5 texts to be found are empty once cleaned' in caplog.text
    assert retrieval.take_text_counts() == {
        'texts': 7,
        'empty': 0,
        'truncated': 0,
        'lost_tokens': 0,
    }
