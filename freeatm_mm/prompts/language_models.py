"""Language models that rewrite prompts: any OpenAI-compatible server, or a local model."""
from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ['Answer', 'LanguageModel', 'LanguageModelError', 'LocalModel', 'Request', 'ServerModel']


class LanguageModelError(RuntimeError):
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
    """

    text: str | None
    problem: str = ''
    tokens_in: int | None = None
    tokens_out: int | None = None
    retries: int = 0


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


class ServerModel:
    """A model behind OpenAI's chat protocol (OpenAI itself, vLLM, Ollama, llama.cpp, ...).

    Connections that fail, time-outs and the answers 408, 409, 429 and 5xx are tried again by the
    official client, after a wait that doubles each time or that the server names.

    Args:
        model: The model's name on the server.
        base_url: The server's address (``'http://localhost:11434/v1'``); OpenAI's, or
            ``OPENAI_BASE_URL``, where not given.
        api_key: The key; ``OPENAI_API_KEY`` where not given. A server given by ``base_url`` may
            need none.
        workers: Requests under way at a time.
        retries: How often a request is sent again before the run stops.
        timeout: Seconds to wait for an answer.
        temperature: The temperature sent.
        max_tokens: The most tokens of an answer.
        seed: Sent along if given; servers promise little for it.

    Raises:
        ImportError: If the package ``openai`` is not installed.
        LanguageModelError: If there is no key for a server that needs one.
    """

    group_size = 1

    def __init__(self, model: str, base_url: str | None = None, api_key: str | None = None,
                 workers: int = 8, retries: int = 8, timeout: float = 120,
                 temperature: float = 1.0, max_tokens: int = 1500, seed: int | None = None) -> None:
        try:
            import openai
        except ImportError:
            raise ImportError('a language-model server needs the package openai: pip install '
                              'openai, or ./run setup prompts') from None
        self._openai = openai
        self.name = model
        self.workers = workers
        self._settings: dict[str, Any] = {'temperature': temperature, 'max_tokens': max_tokens}
        if seed is not None:
            self._settings['seed'] = seed
        key = api_key or os.environ.get('OPENAI_API_KEY')
        if not key and not (base_url or os.environ.get('OPENAI_BASE_URL')):
            raise LanguageModelError("OpenAI's server needs a key: set OPENAI_API_KEY, or name "
                                     'another server with --server')
        self._client = openai.OpenAI(api_key=key or 'none', base_url=base_url, max_retries=retries,
                                     timeout=timeout)

    def answers(self, groups: Iterable[Sequence[Request]]) -> Iterator[list[Answer]]:
        """Yield the answers of each group, in order, with several requests under way.

        Raises:
            LanguageModelError: If the server refuses the key or the model, or all retries failed.
        """
        pending: deque[Future] = deque()
        pool = ThreadPoolExecutor(self.workers)
        try:
            for group in groups:
                pending.append(pool.submit(self._answer_all, group))
                if len(pending) >= 2 * self.workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _answer_all(self, group: Sequence[Request]) -> list[Answer]:
        return [self._answer(request) for request in group]

    def _answer(self, request: Request) -> Answer:
        openai = self._openai
        try:
            raw = self._client.chat.completions.with_raw_response.create(
                model=self.name, messages=[{'role': 'system', 'content': request.instruction},
                                           {'role': 'user', 'content': request.text}],
                **self._settings)
        except (openai.BadRequestError, openai.UnprocessableEntityError):
            return Answer(None, 'the server refused the request')
        except openai.APIStatusError as error:
            raise LanguageModelError(f'the language-model server answered {error.status_code} '
                                     f'({error.message}); what was done is kept, and the same '
                                     'command goes on') from None
        except openai.APIConnectionError as error:
            raise LanguageModelError("the language-model server can't be reached "
                                     f'({error.__cause__ or error}); what was done is kept, and '
                                     'the same command goes on') from None
        retries = raw.retries_taken
        try:
            completion = raw.parse()
            text = completion.choices[0].message.content
        except (ValueError, TypeError, AttributeError, IndexError, openai.OpenAIError):
            return Answer(None, 'the answer was not in the protocol', retries=retries)
        usage = getattr(completion, 'usage', None)
        tokens = [getattr(usage, name, None) for name in ('prompt_tokens', 'completion_tokens')]
        tokens_in, tokens_out = (n if type(n) is int else None for n in tokens)
        if not isinstance(text, str) or not text.strip():
            return Answer(None, 'the answer was empty', tokens_in, tokens_out, retries)
        return Answer(text, '', tokens_in, tokens_out, retries)


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

    def __init__(self, folder: str, device: str = 'cpu', dtype: str = 'auto', batch_size: int = 8,
                 temperature: float = 1.0, max_tokens: int = 80, seed: int = 0) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        number_format = getattr(torch, dtype, None) if dtype != 'auto' else dtype
        if dtype != 'auto' and not isinstance(number_format, torch.dtype):
            raise LanguageModelError(f'there is no number format {dtype!r}; use auto, float32, '
                                     'float16 or bfloat16')
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, padding_side='left')
            self._model = AutoModelForCausalLM.from_pretrained(
                folder, torch_dtype=number_format, use_safetensors=True).to(device).eval()
        except (OSError, ValueError, RuntimeError, AssertionError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise LanguageModelError(f"the language model {folder!r} can't be loaded: {reason}"
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
        inputs = self._tokenizer([self._prompt(request) for request in group], padding=True,
                                 return_tensors='pt', return_token_type_ids=False,
                                 add_special_tokens=self._tokenizer.chat_template is None)
        inputs = inputs.to(self._model.device)
        sampling: dict[str, Any] = {'do_sample': False}
        if self._temperature > 0:
            sampling = {'do_sample': True, 'temperature': self._temperature, 'top_p': 0.95}
        words = '\n'.join([str(self._seed), *(request.text for request in group)])
        digest = hashlib.blake2b(words.encode(), digest_size=8).digest()
        devices = [self._model.device] if self._model.device.type == 'cuda' else []
        with torch.random.fork_rng(devices), torch.inference_mode():
            torch.manual_seed(int.from_bytes(digest, 'big') >> 1)
            tokens = self._model.generate(**inputs, max_new_tokens=self._max_tokens,
                                          pad_token_id=self._tokenizer.pad_token_id, **sampling)
        new = tokens[:, inputs['input_ids'].shape[1]:]
        answers = []
        for row, mask in zip(new, inputs['attention_mask']):
            text = self._tokenizer.decode(row, skip_special_tokens=True)
            tokens_out = int((row != self._tokenizer.pad_token_id).sum())
            problem = '' if text.strip() else 'the answer was empty'
            answers.append(Answer(text if text.strip() else None, problem, int(mask.sum()),
                                  tokens_out))
        return answers

    def _prompt(self, request: Request) -> str:
        if self._tokenizer.chat_template is None:
            return f'{request.instruction}\n\n{request.text}\n'
        from jinja2 import TemplateError
        apart = [{'role': 'system', 'content': request.instruction},
                 {'role': 'user', 'content': request.text}]
        together = [{'role': 'user', 'content': f'{request.instruction}\n\n{request.text}'}]
        try:
            messages = self._tokenizer.apply_chat_template(
                apart, tokenize=False, add_generation_prompt=True)
        except TemplateError:  # Gemma's and Mistral's know no system
            messages = self._tokenizer.apply_chat_template(
                together, tokenize=False, add_generation_prompt=True)
        return messages
