"""Language models for tests: a server of OpenAI's chat protocol on this machine, a tiny model."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

__all__ = ['ChatServer', 'chat_server', 'completion', 'make_tiny_model', 'rewritten']


class ChatServer:
    """What tests ask of a running server.

    Attributes:
        url: Its address for clients, ``.../v1``.
        requests: The body of every request so far, those that were refused included.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[dict[str, Any]] = []


def rewritten(text: str) -> str:
    """A good answer to the numbered lines of a request, the same each time."""
    lines = []
    for number, prompt, nouns in re.findall(r'^(\d+)\. (.*) \[(.*)\]$', text, re.MULTILINE):
        lines.append(
            f'{number}. A bright photo in which {prompt} near the {nouns}'.replace(';', ' and')
        )
    return '\n'.join(lines)


def completion(text: Any, usage: bool = True) -> dict[str, Any]:
    """The protocol's answer to a chat request."""
    answer: dict[str, Any] = {
        'id': 'chatcmpl-1',
        'object': 'chat.completion',
        'created': 1,
        'model': 'toy',
        'choices': [
            {'index': 0, 'finish_reason': 'stop', 'message': {'role': 'assistant', 'content': text}}
        ],
    }
    if usage:
        answer['usage'] = {'prompt_tokens': 100, 'completion_tokens': 40, 'total_tokens': 140}
    return answer


@contextmanager
def chat_server(
    reply: Callable[[int, dict], tuple[int, Any]] | None = None, delay: float = 0.0
) -> Iterator[ChatServer]:
    """Run a server while the block lasts.

    Args:
        reply: Called with a request's number (from 0) and body; gives the HTTP status and the
            answer, as JSON values or as raw bytes. Rewrites well where not given.
        delay: Seconds that each answer takes.
    """
    if reply is None:

        def reply(number: int, body: dict) -> tuple[int, Any]:
            return 200, completion(rewritten(body['messages'][-1]['content']))

    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = 'HTTP/1.1'

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
            with lock:
                number = len(server.requests)
                server.requests.append(
                    {'path': self.path, 'key': self.headers['Authorization'], **body}
                )
            time.sleep(delay)
            status, answer = reply(number, body)
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            try:
                self.send_response(status)
                self.send_header('Content-Type', 'application/json')
                self.send_header('Content-Length', str(len(data)))
                if status in (429, 500, 503):
                    self.send_header('Retry-After-Ms', '10')
                self.end_headers()
                self.wfile.write(data)
            except OSError:  # the client is gone
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    http.daemon_threads = True
    server = ChatServer(f'http://127.0.0.1:{http.server_port}/v1')
    thread = threading.Thread(
        target=http.serve_forever, kwargs={'poll_interval': 0.05}, daemon=True
    )
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def make_tiny_model(folder: Path) -> str:
    """A random Llama of 10,000 parameters with a tokenizer of words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ['<s>', '</s>', '<unk>', 'a', 'dog', 'bird', 'with', 'on', 'the', 'sand', '.', '1']
    tokenizer = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, unk_token='<unk>'))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token='<s>', eos_token='</s>', unk_token='<unk>'
    ).save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=512,
            bos_token_id=0,
            eos_token_id=1,
        )
    ).save_pretrained(folder)
    return str(folder)
