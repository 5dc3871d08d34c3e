"""Looking at a store: what the index finds, the page of one file, and the server."""

from __future__ import annotations

import http.client
import io
import json
import re
import shutil
import subprocess
import sys
import threading
import urllib.request

import numpy as np
import pytest
from helpers.tiny_stores import make_store
from helpers.tools import exit_code
from PIL import Image

from freeatm_mm import cli
from freeatm_mm.browse import StoreIndex, make_server, write_page
from freeatm_mm.cli import view
from freeatm_mm.prompts import Noun
from freeatm_mm.store import RawSample, Sample, Store, write_store
from freeatm_mm.store.errors import UnreachableStoreError

TRUST = {'a': [0.9, 0.2], 'b': [0.6], 'c': [], 'd': [0.95]}
NAMES = {'a': ['dog', 'ball'], 'b': ['Dogs'], 'c': [], 'd': ['</script><b>cat']}


@pytest.fixture
def store(tmp_path):
    def sample(key):
        names, spans, caption = NAMES[key], [], 'a é'
        for name in names:
            spans.append(Noun(name, len(caption) + 1, len(caption) + 1 + len(name), name.lower()))
            caption += f' {name}'
        masks = np.zeros((len(names), 4, 4), np.uint8)
        masks[:, :2] = 255
        trust = [{'peakedness': t, 'area': 0.5, 'overlap': 0.0} for t in TRUST[key]]
        return Sample.from_image(
            key,
            Image.new('RGB', (8, 6), 'red'),
            image_format='png',
            caption=caption,
            nouns=tuple(spans),
            masks=masks,
            scales=np.tile(np.float32([0, 1]), (len(names), 1)),
            meta={'mask_trust': trust} if key != 'd' else {},
        )

    write_store(tmp_path / 'store', map(sample, 'abcd'))
    return Store(tmp_path / 'store')


@pytest.fixture
def server(store):
    server = make_server(store)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.reader.join()
    yield server
    server.shutdown()
    server.server_close()


def get(server, path, host=None):
    port = server.server_address[1]
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=20)
    connection.putrequest('GET', path, skip_host=True)
    connection.putheader('Host', host or f'127.0.0.1:{port}')
    connection.endheaders()
    answer = connection.getresponse()
    return answer, answer.read()


@pytest.mark.parametrize(
    'asked, expected',
    [
        ((), [0, 1, 2, 3]),
        (('DOG',), [0, 1]),
        (('dog', 0.7), [0]),
        (('', 0.5), [1]),  # every mask of the image, and those of unknown trust are left out
        (('ball', 0.5), []),
        (('x',), []),
        (('', 0, 'least trusted'), [0, 1, 2, 3]),
        (('dog', 0, 'least trusted'), [1, 0]),
        (('dog', 0, 'most trusted'), [0, 1]),
    ],
)
def test_the_index_finds(store, asked, expected):
    index = StoreIndex()
    for number in range(4):
        index.add(number, store.read(number))
    assert index.find(*asked).tolist() == expected


def test_the_summary_counts(store):
    index = StoreIndex()
    assert index.find().tolist() == [] and index.summary()['samples'] == 0
    for number in range(4):
        index.add(number, store.read(number))
    summary = index.summary()
    assert (summary['samples'], summary['instances'], summary['nouns']) == (4, 4, 4)
    assert summary['numbers'] == [1, 2, 1] and sum(summary['trust']) == 3
    assert summary['size'][10] == 4  # half of the image, recorded or measured
    assert ('dog', 1) in summary['top']


def test_a_page_of_one_file_holds_its_samples_and_runs_nothing_of_theirs(store, tmp_path, capsys):
    out = tmp_path / 'page.html'
    assert cli.main(['view', str(store.path), '--out', str(out)]) == 0
    text = out.read_text(encoding='utf-8')
    assert text.count('</script>') == 2  # a noun's own is written otherwise
    content = json.loads(re.search(r'id="content">(.*?)</script>', text, re.S)[1])
    assert [card['key'] for card in content['cards']] == list('abcd')
    assert content['cards'][3]['nouns'][0]['text'] == '</script><b>cat'
    first = content['cards'][0]
    assert [noun['trust'] for noun in first['nouns']] == [0.9, 0.2]
    start, end = first['nouns'][0]['span']
    assert first['caption'][start:end] == 'dog'
    assert first['image'].startswith('data:image/jpeg;base64,')
    assert 'http' not in re.sub(r'data:[^"]*', '', text)  # nothing is fetched
    assert 'page.html: 4 samples' in capsys.readouterr().out
    words = ['view', store.path, '--out', out, '--where', 'nouns.#>=2', '--seed', '0']
    assert exit_code(cli, words) == 0 and 'page.html: 1 sample\n' in capsys.readouterr().out
    mine = tmp_path / 'mine.html'
    mine.write_text('<!doctype html>\n<title>mine</title>')
    words[3] = mine
    assert exit_code(cli, words) == 2 and 'not a page of freeatm view' in capsys.readouterr().err
    assert mine.read_text().endswith('<title>mine</title>')
    words[5] = 'nouns.#>=5'
    assert exit_code(cli, words) == 2 and 'no sample of' in capsys.readouterr().err


def test_the_server_answers(server):
    answer, body = get(server, '/')
    assert answer.status == 200 and b'search nouns' in body and b'"content">null<' in body
    assert b'image-orientation: none' in body  # masks lie on the pixels as they are stored
    assert "default-src 'none'" in answer.headers['Content-Security-Policy']
    answer, body = get(server, '/cards?noun=dog&order=most+trusted')
    content = json.loads(body)
    assert [card['key'] for card in content['cards']] == ['a', 'b']
    assert (content['found'], content['read'], content['all'], content['damaged']) == (2, 4, 4, 0)
    answer, body = get(server, f'/{content["cards"][0]["image"]}')
    assert answer.headers['Content-Type'] == 'image/png'
    assert Image.open(io.BytesIO(body)).size == (8, 6)
    answer, body = get(server, f'/{content["cards"][0]["nouns"][1]["mask"]}')
    mask = np.asarray(Image.open(io.BytesIO(body)))
    assert mask.shape == (4, 4, 4) and mask[0, 0, 3] > 100 and mask[3, 3, 3] == 0


def test_many_nouns_are_named_once_and_each_has_its_mask(tmp_path, monkeypatch):
    count = 1100
    names = ' '.join(f'n{number:04d}' for number in range(count))
    sample = Sample.from_image(
        'a',
        Image.new('RGB', (8, 6)),
        image_format='png',
        caption=names,
        nouns=tuple(Noun(names[n : n + 5], n, n + 5) for n in range(0, 6 * count, 6)),
        masks=np.zeros((count, 2, 2), np.uint8),
        scales=np.zeros((count, 2), np.float32),
    )
    write_store(tmp_path / 'store', [sample])
    server = make_server(Store(tmp_path / 'store'))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.reader.join()
    calls, real = [], RawSample.names
    monkeypatch.setattr(RawSample, 'names', lambda raw: calls.append(raw) or real(raw))
    (card,) = json.loads(get(server, '/cards')[1])['cards']
    assert len(calls) == 1 and card['nouns'][1099]['name'] == 'n1099'
    assert get(server, f'/{card["nouns"][1099]["mask"]}')[0].status == 200
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    'path, status',
    [
        ('/../store.json', 404),
        ('/image/../../store.json', 404),
        ('/image/%2e%2e', 404),
        ('/image/4', 404),
        ('/image/-1', 404),
        ('/mask/0/9', 404),
        ('/mask/2/0', 404),
        ('/cards?trust=much', 422),
        ('/cards?order=best', 422),
        ('/cards?offset=-1', 422),
        ('/cards?' + '&'.join('noun=a' for _ in range(9)), 422),
        ('http://[', 422),
        (f'/cards?offset={10**30}&trust=nan', 200),
        ('/cards?trust=inf&noun=%00%ff', 200),
    ],
)
def test_the_server_refuses(server, path, status):
    assert get(server, path)[0].status == status


def test_a_store_is_shown_without_pytorch(store, tmp_path):
    program = (
        'import sys\nfrom freeatm_mm.cli import main\nmain(["view", *sys.argv[1:]])\n'
        'assert "torch" not in sys.modules'
    )
    words = [tmp_path / 'store', '--out', tmp_path / 'page.html']
    subprocess.run([sys.executable, '-c', program, *words], check=True)


def test_a_browser_that_goes_away_is_no_fault(server, capfd):
    for error, told in ((BrokenPipeError(), False), (KeyError('x'), True)):
        try:
            raise error
        except (OSError, KeyError):
            server.handle_error(None, ('127.0.0.1', 1))
        assert ('Traceback' in capfd.readouterr().err) is told


def test_the_server_is_for_this_machine_alone(server):
    assert server.server_address[0] == '127.0.0.1'
    port = server.server_address[1]
    for host in ('evil.example', f'evil.example:{port}', f'localhost.evil.example:{port}', ':80'):
        assert get(server, '/cards', host=host)[0].status == 403
    tunnels = ('localhost:1', '127.0.0.1:65535', 'localhost', 'LocalHost:8080')
    for host in (f'localhost:{port}', *tunnels):
        assert get(server, '/', host=host)[0].status == 200


def test_damaged_samples_are_counted(tmp_path):
    path = make_store(tmp_path / 'store', count=5)
    shard = next(path.glob('*.tar'))
    data = bytearray(shard.read_bytes())
    data[data.index(b'IHDR') + 20] ^= 255
    shard.write_bytes(data)
    server = make_server(Store(path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.reader.join()
    content = json.loads(get(server, '/cards')[1])
    assert (content['found'], content['read'], content['damaged']) == (4, 5, 1)
    server.shutdown()
    server.server_close()


def test_samples_of_a_server_that_is_away_for_a_moment_are_not_damaged(store, monkeypatch):
    monkeypatch.setattr('freeatm_mm.browse.server._FIRST_WAIT', 0.001)
    real, back, asked = store.read, threading.Event(), threading.Semaphore(0)

    def read(number):
        if number == 2 and not back.is_set():
            asked.release()
            raise UnreachableStoreError('its server answers 503')
        return real(number)

    monkeypatch.setattr(store, 'read', read)
    server = make_server(store)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    assert asked.acquire(timeout=60) and asked.acquire(timeout=60)  # the second time it is noted
    content = json.loads(get(server, '/cards')[1])
    assert (content['read'], content['damaged']) == (2, 0)
    assert content['unreachable'] == 'its server answers 503'
    back.set()
    server.reader.join(timeout=60)
    content = json.loads(get(server, '/cards')[1])
    assert (content['read'], content['damaged'], content['unreachable']) == (4, 0, '')
    server.shutdown()
    server.server_close()


def test_waiting_for_a_server_ends_with_the_page(store, monkeypatch):
    monkeypatch.setattr('freeatm_mm.browse.server._FIRST_WAIT', 3600.0)
    asked = threading.Event()

    def read(number):
        asked.set()
        raise UnreachableStoreError('its server answers 503')

    monkeypatch.setattr(store, 'read', read)
    server = make_server(store)
    assert asked.wait(60)
    server.server_close()
    assert not server.reader.is_alive() and not server.damaged


@pytest.mark.parametrize('port', [-1, 65_536, 10**20])
def test_a_port_that_none_has_is_refused(store, capsys, port):
    assert exit_code(cli, ['view', store.path, '--port', port, '--no-browser']) == 2
    assert 'from 0 to 65,535' in capsys.readouterr().err


def test_a_browser_that_is_waited_for_gets_the_page(store, monkeypatch):
    """A text browser, which webbrowser.open waits for."""
    servers, seen = [], []

    def make(*args):
        servers.append(make_server(*args))
        return servers[0]

    def opened(address):
        with urllib.request.urlopen(address, timeout=20) as answer:
            seen.append(answer.status)
        servers[0].shutdown()

    monkeypatch.setattr('freeatm_mm.browse.make_server', make)
    monkeypatch.setattr(view.webbrowser, 'open', opened)
    assert view.main([str(store.path)]) == 0
    assert seen == [200]


def test_a_taken_port_is_told(server, store, capsys):
    port = server.server_address[1]
    assert exit_code(cli, ['view', store.path, '--port', port, '--no-browser']) == 2
    assert f'port {port} is taken' in capsys.readouterr().err


@pytest.mark.parametrize(
    'words', [['--count', 3], ['--seed', 0], ['--where', 'nouns.#>=2'], ['--out', 'x', '--port', 0]]
)
def test_options_without_effect_are_refused(store, capsys, words):
    assert exit_code(cli, ['view', store.path, *words]) == 2
    assert '--out' in capsys.readouterr().err


CHROMIUM = next(
    filter(
        None,
        map(shutil.which, ('chromium', 'chromium-browser', 'chrome', 'chromium-headless-shell')),
    ),
    None,
)


@pytest.mark.skipif(CHROMIUM is None, reason='there is no Chromium')
@pytest.mark.parametrize('served', [False, True])
def test_a_browser_shows_it(store, server, tmp_path, served):
    address = f'http://127.0.0.1:{server.server_address[1]}/'
    if not served:
        write_page(store, tmp_path / 'page.html', range(4))
        address = (tmp_path / 'page.html').as_uri()
    shown = subprocess.run(
        [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--dump-dom']
        + ['--virtual-time-budget=5000', address],
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout
    assert shown.count('<figure tabindex="0">') == 4 and shown.count('alt="mask of ') == 4
    assert re.search(r'id="said"[^>]*>4 (of 4 )?samples<', shown)
    assert re.search(r'>dog</mark> <mark[^>]*>ball</mark>', shown)
    assert '<b>cat' not in shown and '&lt;b&gt;cat' in shown
    assert '4 nouns, 4 masks' in shown and len(re.findall('<i [^>]*height: 100%', shown)) > 2
