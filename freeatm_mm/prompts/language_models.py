"""Language models that rewrite prompts: any OpenAI-compatible server, or a local model."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import threading
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError  # another one before Python 3.11
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from freeatm_mm.compat import (
    check_kernels,
    hub_or_cache,
    hub_out_of_reach,
    limit_chat_templates,
    no_code_from_data,
)
from freeatm_mm.errors import RunError, first_line, pip_install
from freeatm_mm.files import read_json
from freeatm_mm.prompts.reading import excerpt, load_json

__all__ = [
    'Answer',
    'LanguageModel',
    'LanguageModelError',
    'LocalModel',
    'Request',
    'ServerModel',
    'model_folder',
    'read_completion',
]

#: The longest answer of a server that is read, in bytes, packed and unpacked.
LONGEST_BODY = 1 << 22
#: More tokens than that are no count.
MOST_TOKENS = 10**8
#: Why an answer was broken off, besides its length: Azure's word, OpenRouter's, DeepSeek's, vLLM's.
_BROKEN_OFF = ('content_filter', 'error', 'insufficient_system_resource', 'abort')
#: A chat template that knows no system message, as vLLM passes it on.
_ONLY_USER = re.compile(
    r'roles must alternate|only (?:the )?user(?:,| and|, and) assistant', re.IGNORECASE
)
_UNKNOWN_SETTING = re.compile(
    r'unsupported|not supported|does ?n.t support|does not support|unknown|unrecogni[sz]ed|'
    r'unexpected|not permitted|not allowed|forbidden|extra|only the default|deprecated|'
    r'not available|invalid (?:argument|parameter|field)|additional propert',
    re.IGNORECASE,
)


class LanguageModelError(RunError):
    """The language model can't go on: a wrong key, no such model, a server that stays away."""


@dataclass(frozen=True)
class Request:
    """What a language model is asked.

    Args:
        instruction: What it is to do, the same for all.
        text: What to do it with.
    """

    instruction: str
    text: str


@dataclass(frozen=True)
class Answer:
    """What came back.

    Args:
        text: The model's words, or ``None`` where none came.
        problem: Why none came.
        tokens_in: Tokens of the request, or ``None`` where the server doesn't say.
        tokens_out: Tokens of the answer, likewise.
        retries: How often the request had to be sent again.
        cut: The answer ran into its limit of tokens, so that its last sentence may be half of one.
        detail: What the server said of the problem, or how the answer began that can't be used.
        notes: What was done otherwise than asked (``'asked without temperature'``).
    """

    text: str | None
    problem: str = ''
    tokens_in: int | None = None
    tokens_out: int | None = None
    retries: int = 0
    cut: bool = False
    detail: str = ''
    notes: tuple[str, ...] = ()


class LanguageModel(Protocol):
    """What answers requests.

    Attributes:
        name: For the records' ``source``.
        group_size: How many requests belong together in one step.
    """

    name: str
    group_size: int

    def answers(self, groups: Iterable[Sequence[Request]]) -> Iterator[list[Answer]]:
        """Yield the answers of each group, in order."""


def read_completion(body: bytes) -> Answer:
    """Read what a server of OpenAI's chat protocol answered.

    Thoughts that stand in fields of their own (``reasoning_content``) are left out; the content
    may be a string or a list of parts; of several choices, the first with words counts.

    Args:
        body: The answer of the server, which may be anything.
    """
    try:
        value = load_json(body)
        if not isinstance(value, dict):
            raise ValueError('no object')
    except ValueError as error:
        return Answer(
            None, 'the answer was not in the protocol', detail=f'{error}: {excerpt(body)}'
        )
    usage = value.get('usage')
    counts = [
        usage.get(name) if isinstance(usage, dict) else None
        for name in ('prompt_tokens', 'completion_tokens')
    ]
    tokens_in, tokens_out = (
        n if type(n) is int and 0 <= n <= MOST_TOKENS else None for n in counts
    )
    if value.get('error'):
        return Answer(
            None, 'the server reported an error', tokens_in, tokens_out, detail=_reason(value)
        )
    choices = value.get('choices')
    if not isinstance(choices, list) or not choices:
        return Answer(
            None, 'the answer was not in the protocol', tokens_in, tokens_out, detail=excerpt(body)
        )
    answers = [_read_choice(choice) for choice in choices[:100]]
    best = next((answer for answer in answers if answer.text is not None), answers[0])
    return replace(best, tokens_in=tokens_in, tokens_out=tokens_out)


def _read_choice(choice: Any) -> Answer:
    message = choice.get('message') if isinstance(choice, dict) else None
    if isinstance(choice, dict) and message is None and isinstance(choice.get('text'), str):
        message = {'content': choice['text']}  # the older protocol of completions
    if not isinstance(message, dict):
        return Answer(None, 'the answer was not in the protocol', detail=excerpt(choice))
    finish, failed = choice.get('finish_reason'), choice.get('error')
    too_long = finish in ('length', 'max_tokens', 'model_length')
    cut = too_long or bool(failed) or finish in _BROKEN_OFF
    content = message.get('content')
    if isinstance(content, list):
        content = ''.join(_part(part) for part in content[:1000])
    if isinstance(content, str) and content.strip():
        return Answer(content, cut=cut)
    for problem, said in (
        ('the model refused', message.get('refusal')),
        ('the server filtered the answer', finish == 'content_filter'),
        (
            'the answer was a call of a tool',
            message.get('tool_calls') or message.get('function_call'),
        ),
        ('the answer was cut off before its first word (a larger --max-tokens helps)', too_long),
        ('the server reported an error', failed and _reason(failed)[1:-1]),
        (
            'the answer was thoughts only',
            message.get('reasoning_content') or message.get('reasoning'),
        ),
    ):
        if said:
            return Answer(None, problem, detail='' if said is True else excerpt(said))
    return Answer(None, 'the answer was empty')


def _part(part: Any) -> str:
    """The words of one part of a content that is a list."""
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and part.get('type', 'text') in ('text', 'output_text'):
        text = part.get('text')
        return text if isinstance(text, str) else ''
    return ''


def _reason(value: Any) -> str:
    """What a server's error says, wherever it stands in it."""
    for _ in range(4):
        if isinstance(value, list) and value:
            value = value[0]
        if not isinstance(value, dict):
            break
        value = next(
            (
                value[key]
                for key in ('error', 'message', 'detail', 'msg', 'title')
                if value.get(key)
            ),
            value,
        )
        if isinstance(value, str):
            return excerpt(value, 200)
    return excerpt(value, 200)


def _limited_client(openai: Any, seconds: float) -> Any:
    """An HTTP client for openai's that bounds each request's whole time and its answer's bytes.

    The time-outs of HTTP clients hold from one byte to the next, so that a server that sends one
    now and then is never given up; and they unpack what is packed, however much it becomes.
    """
    base = openai.DefaultAsyncHttpxClient
    httpx = import_module(
        next(part.__module__ for part in base.__mro__ if part.__name__ == 'AsyncClient').partition(
            '.'
        )[0]
    )

    class LimitedClient(base):  # type: ignore[misc, valid-type]
        async def send(self, request: Any, **options: Any) -> Any:
            options.update(stream=True, follow_redirects=False)
            try:
                return await asyncio.wait_for(self._send_and_read(request, options), seconds)
            except asyncio.TimeoutError:
                raise httpx.ReadTimeout(
                    f'no whole answer within {seconds:g} seconds', request=request
                ) from None

        async def _send_and_read(self, request: Any, options: dict) -> Any:
            response = await super().send(request, **options)
            try:
                body, problem = await _read_body(response)
            finally:
                await response.aclose()
            headers = [
                (name, value)
                for name, value in response.headers.multi_items()
                if name.lower() not in ('content-encoding', 'content-length', 'transfer-encoding')
            ]
            return httpx.Response(
                _status(response.status_code, body),
                headers=headers,
                content=body,
                request=request,
                extensions={'problem': problem},
            )

    return LimitedClient(
        timeout=httpx.Timeout(seconds, connect=min(seconds, 30)),
        headers={'Accept-Encoding': 'identity'},
    )


def _status(status: int, body: bytes) -> int:
    """The status of an answer: one of 200 may hold an error that passes (OpenRouter's do)."""
    if status != 200 or b'"error"' not in body[:1000]:
        return status
    try:
        value = load_json(body)
        code = int(value['error']['code'])
    except (ValueError, TypeError, KeyError):
        return status
    passes = code in (408, 409, 429) or 500 <= code < 600
    return code if passes and not value.get('choices') else status


async def _read_body(response: Any) -> tuple[bytes, str]:
    """A response's bytes, unpacked, up to the limit, and what is wrong with them."""
    encoding = response.headers.get('content-encoding', 'identity').strip().lower()
    unpack = None
    if encoding in ('gzip', 'x-gzip', 'deflate'):
        unpack = zlib.decompressobj(47)
    elif encoding != 'identity':
        return b'', f'the answer was packed in a way not asked for ({excerpt(encoding, 40)})'
    body = bytearray()
    async for chunk in response.aiter_raw():
        try:
            while chunk:
                room = LONGEST_BODY + 1 - len(body)
                body += unpack.decompress(chunk, room) if unpack else chunk[:room]
                if len(body) > LONGEST_BODY:
                    return b'', f'the answer had more than {LONGEST_BODY >> 20} MiB'
                chunk = unpack.unconsumed_tail if unpack else b''
        except zlib.error:
            return b'', 'the answer was packed and damaged'
    return bytes(body), ''


class ServerModel:
    """A model behind OpenAI's chat protocol (OpenAI itself, vLLM, Ollama, llama.cpp, ...).

    Connections that fail, time-outs and the answers 408, 409, 429 and 5xx are tried again by the
    official client, after a wait that doubles each time up to some seconds, or that the server
    names if it is short. No answer is waited for longer than ``timeout`` from the first byte sent
    to the last received, and none of more than 4 MiB is read.

    A setting that the server says it doesn't know is left out from then on (``max_tokens`` is sent
    as ``max_completion_tokens``), and a model without a system message gets the instruction with
    the prompts; the answers' notes tell.

    Args:
        model: The model's name on the server.
        base_url: The server's address (``'http://localhost:11434/v1'``); OpenAI's, or
            ``OPENAI_BASE_URL``, where not given.
        api_key: The key; ``OPENAI_API_KEY`` where not given. A server given by ``base_url`` may
            need none.
        workers: Requests under way at a time.
        retries: How often a request is sent again before the run stops.
        timeout: Seconds for an answer, each time that the request is sent.
        temperature: The temperature sent.
        max_tokens: The most tokens of an answer.
        seed: Sent along if given; servers promise little for it.

    Raises:
        ImportError: If the package ``openai`` is not installed.
        LanguageModelError: If there is no key for a server that needs one, or the address is none.
    """

    group_size = 1

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key: str | None = None,
        workers: int = 8,
        retries: int = 8,
        timeout: float = 120,
        temperature: float = 1.0,
        max_tokens: int = 1500,
        seed: int | None = None,
    ) -> None:
        try:
            import openai
        except ImportError:
            raise ImportError(
                f'a language-model server needs the package openai: {pip_install("prompts")}'
            ) from None
        self._openai = openai
        self.name = model
        self.workers = workers
        self._settings: dict[str, Any] = {'temperature': temperature, 'max_tokens': max_tokens}
        if seed is not None:
            self._settings['seed'] = seed
        self._system = True
        self._answered = False  # so far
        self._notes: tuple[str, ...] = ()
        address = base_url or os.environ.get('OPENAI_BASE_URL')
        key = api_key or os.environ.get('OPENAI_API_KEY')
        if not key and not address:
            raise LanguageModelError(
                "OpenAI's server needs a key: set OPENAI_API_KEY, or name "
                'another server with --server'
            )
        no_address = LanguageModelError(
            f'{excerpt(address)} is no address of a server; it begins with http:// or https://, '
            'such as http://localhost:11434/v1'
        )
        try:
            parts = urlsplit(address or 'https://openai')
            if parts.scheme not in ('http', 'https') or not parts.hostname or parts.port == 0:
                raise no_address
        except ValueError:
            raise no_address from None
        if not (key or 'none').isascii():
            raise LanguageModelError(
                'the key in OPENAI_API_KEY holds a character that no key has; copy it again'
            )
        self._options: dict[str, Any] = {
            'api_key': (key or 'none').strip(),
            'base_url': base_url,
            'max_retries': retries,
            'timeout': timeout,
        }
        self._timeout = timeout
        try:
            openai.AsyncOpenAI(**self._options)  # what can't be is told now
        except Exception as error:
            if type(error).__name__ == 'InvalidURL':  # httpx's, by whichever name it goes
                raise no_address from None
            # Such as a proxy that the environment names and httpx can't use.
            raise LanguageModelError(
                f"the language-model server can't be asked: {first_line(error)}"
            ) from None

    def answers(self, groups: Iterable[Sequence[Request]]) -> Iterator[list[Answer]]:
        """Yield the answers of each group, in order, with several requests under way.

        Raises:
            LanguageModelError: If the server refuses the key or the model, or all retries failed.
        """
        pending: deque[Future] = deque()
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name='language model', daemon=True)
        thread.start()

        async def begin() -> tuple[Any, asyncio.Semaphore]:
            http = _limited_client(self._openai, self._timeout)
            return (
                self._openai.AsyncOpenAI(**self._options, http_client=http),
                asyncio.Semaphore(self.workers),
            )

        async def end() -> None:
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await client.close()

        client, gate = asyncio.run_coroutine_threadsafe(begin(), loop).result()
        try:
            for group in groups:
                pending.append(
                    asyncio.run_coroutine_threadsafe(self._answer_all(client, gate, group), loop)
                )
                if len(pending) >= 2 * self.workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            with suppress(TimeoutError, FutureTimeoutError):
                asyncio.run_coroutine_threadsafe(end(), loop).result(timeout=10)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(10)
            if not thread.is_alive():
                loop.close()

    async def _answer_all(
        self, client: Any, gate: asyncio.Semaphore, group: Sequence[Request]
    ) -> list[Answer]:
        async with gate:
            return [await self._answer(client, request) for request in group]

    async def _answer(self, client: Any, request: Request) -> Answer:
        openai = self._openai
        for _ in range(len(self._settings) + 3):
            system, settings = self._system, dict(self._settings)
            try:
                raw = await client.chat.completions.with_raw_response.create(
                    model=self.name, messages=_messages(request, system), **settings
                )
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                refused = self._refused(error)
                if self._without(error, system, settings):
                    continue
                return refused
            except openai.APIStatusError as error:
                if error.status_code == 403 and (self._answered or _is_flagged(error.body)):
                    return self._refused(error)  # these prompts, not the key
                raise LanguageModelError(
                    f'the language-model server answered {error.status_code} '
                    f'({_status_reason(error)}); what was done is kept, and the same command goes '
                    'on'
                ) from None
            except openai.APIConnectionError as error:
                cause = str(error.__cause__ or '') or type(error.__cause__ or error).__name__
                raise LanguageModelError(
                    "the language-model server can't be reached, or doesn't "
                    f'answer ({excerpt(cause, 200)[1:-1]}); what was done is '
                    'kept, and the same command goes on'
                ) from None
            retries = raw.retries_taken
            self._answered = True
            problem = raw.http_response.extensions.get('problem')
            if problem:
                return Answer(None, problem, retries=retries, notes=self._notes)
            return replace(
                read_completion(raw.http_response.content), retries=retries, notes=self._notes
            )
        return replace(refused, notes=self._notes)

    def _refused(self, error: Any) -> Answer:
        reason = f'{error.status_code} {_reason(error.body or error.message)}'
        return Answer(None, 'the server refused the request', detail=reason, notes=self._notes)

    def _without(self, error: Any, system: bool, settings: dict[str, Any]) -> bool:
        """Leave out what a server says it doesn't know; whether there is something to try anew."""
        if system != self._system or settings != self._settings:
            return True  # another request has met the same refusal meanwhile
        body = error.body if isinstance(error.body, dict) else {}
        parameter = body.get('param') if isinstance(body.get('param'), str) else None
        words = excerpt(error.body or error.message, 2000)
        unknown = _UNKNOWN_SETTING.search(words) or 'unsupported' in str(body.get('code'))
        for name in settings:
            if not unknown or not (
                parameter == name or re.search(rf'(?<![\w-]){name}(?![\w-])', words)
            ):
                continue
            self._settings.pop(name)
            if name == 'max_tokens' and 'max_completion_tokens' in words:
                self._settings['max_completion_tokens'] = settings[name]
                self._notes += ('asked with max_completion_tokens instead of max_tokens',)
            else:
                self._notes += (f'asked without {name}, which the server refused',)
            return True
        if system and (
            unknown
            and re.search(r'\b(?:system|developer)\b', words, re.IGNORECASE)
            or _ONLY_USER.search(words)
        ):
            self._system = False
            self._notes += ('asked without a system message, which the server refused',)
            return True
        return False


def _is_flagged(body: Any) -> bool:
    """Whether a server refuses what it was asked, as its error says."""
    told = body.get('metadata') if isinstance(body, dict) else None
    return isinstance(told, dict) and bool({'reasons', 'flagged_input'} & told.keys())


def _messages(request: Request, system: bool) -> list[dict[str, str]]:
    if system:
        return [
            {'role': 'system', 'content': request.instruction},
            {'role': 'user', 'content': request.text},
        ]
    return [{'role': 'user', 'content': f'{request.instruction}\n\n{request.text}'}]


def _status_reason(error: Any) -> str:
    """Why a server refused, with where it sends on to and how long it wants one to wait."""
    reason = _reason(error.body or error.message)[1:-1]
    if error.status_code in range(300, 400):
        reason = (
            f'it sends on to {excerpt(error.response.headers.get("location", "nowhere"))}; '
            'name that with --server'
        )
    elif wait := error.response.headers.get('retry-after'):
        reason += f'; it says to wait {excerpt(wait, 40)[1:-1]} seconds'
    return reason


def model_folder(name: str) -> Path:
    """Return the folder of a model of transformers, fetched where it is a name: data alone.

    Raises:
        OSError: If it can't be had.
        ValueError: If it holds something that leads to other weights, or to code.
    """
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        kinds = ['*.json', '*.safetensors', '*.txt', '*.model', '*.jinja']
        with hub_or_cache():
            # The same weights in other layouts: `original/`, Mistral's `consolidated`.
            others = ['*/*', 'consolidated*.safetensors']
            found = snapshot_download(name, allow_patterns=kinds, ignore_patterns=others)
            folder = Path(found)
    if (folder / 'adapter_config.json').exists():
        raise ValueError(
            'its adapter_config.json leads to the weights of another model, which are not loaded: '
            'merge the adapter into the weights'
        )
    if (folder / 'config.json').exists():
        check_kernels('its config.json', read_json(folder / 'config.json', finite=False))
    for path in folder.glob('*.index.json'):
        files = read_json(path, shape={'weight_map': dict})['weight_map'].values()
        if any(not isinstance(file, str) or file != os.path.basename(file) for file in files):
            raise ValueError(f'its {path.name} names weights outside of its folder')
    return folder


class LocalModel:
    """A causal language model of transformers, from a folder.

    The same requests in the same groups give the same answers for a seed, on one machine.

    Args:
        folder: A model folder (or name) that ``from_pretrained`` takes, with its tokenizer; only
            safetensors weights are read.
        device: Where it runs.
        dtype: ``'auto'``, ``'float32'``, ``'bfloat16'``, ...
        batch_size: Requests answered together.
        temperature: 0 takes the likeliest word each time.
        max_tokens: The most new tokens of an answer.
        seed: Decides what is sampled.

    Raises:
        LanguageModelError: If there is no such model, device or number format.
    """

    def __init__(
        self,
        folder: str,
        device: str = 'cpu',
        dtype: str = 'auto',
        batch_size: int = 8,
        temperature: float = 1.0,
        max_tokens: int = 80,
        seed: int = 0,
    ) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        number_format = getattr(torch, dtype, None) if dtype != 'auto' else dtype
        if dtype != 'auto' and not isinstance(number_format, torch.dtype):
            raise LanguageModelError(
                f'there is no number format {dtype!r}; use auto, float32, float16 or bfloat16'
            )
        limit_chat_templates()
        try:
            with no_code_from_data():
                place = model_folder(folder)
                with hub_out_of_reach():
                    self._tokenizer = AutoTokenizer.from_pretrained(
                        place, padding_side='left', trust_remote_code=False
                    )
                    model = AutoModelForCausalLM.from_pretrained(
                        place,
                        torch_dtype=number_format,
                        use_safetensors=True,
                        trust_remote_code=False,
                    )
            self._model = model.to(device).eval()
        except (OSError, ValueError, RuntimeError, AssertionError) as error:
            raise LanguageModelError(
                f"the language model {folder!r} can't be loaded: {first_line(error)}"
            ) from None
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self.name = os.path.basename(os.path.normpath(folder))
        self.group_size = batch_size
        self._temperature = temperature
        self._max_tokens = max_tokens
        self._seed = seed

    def answers(self, groups: Iterable[Sequence[Request]]) -> Iterator[list[Answer]]:
        """Yield the answers of each group, in order."""
        return (self._answer_all(group) for group in groups)

    def _answer_all(self, group: Sequence[Request]) -> list[Answer]:
        import torch

        inputs = self._tokenizer(
            [self._prompt(request) for request in group],
            padding=True,
            return_tensors='pt',
            return_token_type_ids=False,
            add_special_tokens=self._tokenizer.chat_template is None,
        )
        inputs = inputs.to(self._model.device)
        sampling: dict[str, Any] = {'do_sample': False}
        if self._temperature > 0:
            sampling = {'do_sample': True, 'temperature': self._temperature, 'top_p': 0.95}
        words = '\n'.join([str(self._seed), *(request.text for request in group)])
        digest = hashlib.blake2b(words.encode(), digest_size=8).digest()
        devices = [self._model.device] if self._model.device.type == 'cuda' else []
        with torch.random.fork_rng(devices), torch.inference_mode():
            torch.manual_seed(int.from_bytes(digest, 'big') >> 1)
            tokens = self._model.generate(
                **inputs,
                max_new_tokens=self._max_tokens,
                pad_token_id=self._tokenizer.pad_token_id,
                **sampling,
            )
        new = tokens[:, inputs['input_ids'].shape[1] :]
        answers = []
        for row, mask in zip(new, inputs['attention_mask']):
            text = self._tokenizer.decode(row, skip_special_tokens=True)
            tokens_out = int((row != self._tokenizer.pad_token_id).sum())
            problem = '' if text.strip() else 'the answer was empty'
            ends = self._model.generation_config.eos_token_id
            ends = {*(ends if isinstance(ends, list) else [ends]), self._tokenizer.eos_token_id}
            cut = len(row) >= self._max_tokens and not ends & set(row.tolist())
            answers.append(
                Answer(
                    text if text.strip() else None, problem, int(mask.sum()), tokens_out, cut=cut
                )
            )
        return answers

    def _prompt(self, request: Request) -> str:
        if self._tokenizer.chat_template is None:
            return f'{request.instruction}\n\n{request.text}\n'
        from jinja2 import TemplateError

        problem = ''
        for with_system in (True, False):  # Gemma's and Mistral's know none
            try:
                text = self._tokenizer.apply_chat_template(
                    _messages(request, with_system), tokenize=False, add_generation_prompt=True
                )
            except TemplateError as error:
                problem = str(error)
                continue
            if request.instruction in text:  # some leave a system message out
                return text
            problem = 'its chat template leaves out the instruction'
        raise LanguageModelError(
            f"the language model {self.name!r} can't be asked: {excerpt(problem)[1:-1]}"
        )
