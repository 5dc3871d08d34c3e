"""Models as Python objects: saved whole, copied, sent to a new process, compiled."""

import copy
import io
import pickle

import pytest
import torch
from helpers.tiny_models import dino, mae, moco, samples, simclr, simsiam, views
from torch import multiprocessing

MODELS = dict(moco=moco, simclr=simclr, simsiam=simsiam, mae=mae, dino=dino)


def step(name, model, counts=(2, None, 1, 0)):
    """The loss of one batch with masks and its gradients."""
    number = 1 if name == 'mae' else 2
    images = views(len(counts), number=number)
    torch.manual_seed(0)
    model.zero_grad()
    images = images[0] if name == 'mae' else images
    loss = model.loss(images, samples(counts, number=number))['loss']
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.requires_grad)]


def saved(model):
    """Through `torch.save` of the whole model."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    'through', [copy.deepcopy, saved, lambda model: pickle.loads(pickle.dumps(model))]
)
@pytest.mark.parametrize('name', MODELS)
def test_a_copy_is_the_same_model(name, through):
    model = MODELS[name]()
    twin = through(model)
    assert type(twin) is type(model) and type(twin.neck) is type(model.neck)
    assert repr(twin) == repr(model)
    assert not {p.data_ptr() for p in twin.parameters()} & {
        p.data_ptr() for p in model.parameters()
    }
    assert all(torch.equal(a, b) for a, b in zip(step(name, model), step(name, twin)))
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values())
    )


def answer(given, results):
    """What a spawned process does with the models it gets."""
    torch.set_num_threads(1)
    results.put({name: float(step(name, model)[0]) for name, model in given.items()})


@pytest.mark.filterwarnings('ignore')
def test_models_reach_a_spawned_process():
    """Nothing of the parent's state goes along but what is pickled."""
    context = multiprocessing.get_context('spawn')
    given, results = {name: make() for name, make in MODELS.items()}, context.SimpleQueue()
    process = context.Process(target=answer, args=(given, results))
    process.start()
    losses = results.get()
    process.join()
    assert losses == {
        name: pytest.approx(float(step(name, make())[0]), rel=1e-6) for name, make in MODELS.items()
    }


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', ['moco', 'mae'])
def test_compiled_with_any_numbers_of_instances(name):
    """mmengine's `compile=True`: the same losses, and not compiled anew for every batch."""
    torch.compiler.reset()
    model, reference = MODELS[name](), MODELS[name]()
    model.loss = torch.compile(model.loss, backend='eager')
    counts = [
        (2, None, 1, 0),
        (1, 1, 1, 1),
        (3, 0, 2, None),
        (1, 0, 0, None),
        (2, 5, 1, 1),
        (None,) * 4,
        (4, 1, 2, 2),
        (6, 3, 1, 0),
        (1, 2, 3, 4),
        (2, 2, 7, 0),
        (5, 5, 5, 5),
    ]
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for count in counts:
            for one, other in zip(step(name, model, count), step(name, reference, count)):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
