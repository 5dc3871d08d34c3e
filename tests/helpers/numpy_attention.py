"""Attention of transformers to text in plain numpy, float64, to measure the recorder against.

Nothing here is the recorder's: the inputs of each attention module are taken as it is called, and
projection, norm, rotary embedding, mask and softmax are written out from the models' papers.
"""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np


def _array(tensor) -> np.ndarray:
    return (
        tensor.detach().cpu().numpy().astype(np.complex128 if tensor.is_complex() else np.float64)
    )


def _project(linear, hidden: np.ndarray, heads: int) -> np.ndarray:
    """(batch, length, width) to (batch, heads, length, channels)."""
    out = hidden @ _array(linear.weight).T
    if linear.bias is not None:
        out = out + _array(linear.bias)
    return out.reshape(*out.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def _norm(x: np.ndarray, norm) -> np.ndarray:
    """Norm by root mean square or standard deviation, of one head's channels or all heads'."""
    if norm is None:
        return x
    weight = None if getattr(norm, 'weight', None) is None else _array(norm.weight)
    if type(norm).__name__ == 'Krea2RMSNorm':
        weight = weight + 1
    batch, heads, length, channels = x.shape
    if weight is not None and weight.size != channels:
        x = x.transpose(0, 2, 1, 3).reshape(batch, length, -1)
    if 'LayerNorm' in type(norm).__name__:
        x = x - x.mean(-1, keepdims=True)
    eps = np.finfo(np.float32).eps if norm.eps is None else norm.eps
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
    x = x if weight is None else x * weight
    if getattr(norm, 'bias', None) is not None:
        x = x + _array(norm.bias)
    return x if x.ndim == 4 else x.reshape(batch, length, heads, -1).transpose(0, 2, 1, 3)


def _rotate(x: np.ndarray, rotary) -> np.ndarray:
    """Turns each pair of neighbouring channels by an angle that depends on the place.

    Args:
        x: Shape (batch, heads, length, channels).
        rotary: Cosine and sine of (length, channels), each angle given twice; or complex numbers
            of (length, channels / 2).
    """
    if isinstance(rotary, np.ndarray):
        turn = rotary
    else:
        turn = _array(rotary[0])[..., ::2] + 1j * _array(rotary[1])[..., ::2]
    if turn.ndim == 3:  # a place of its own for each image of the batch
        turn = turn[:, None]
    turned = (x[..., ::2] + 1j * x[..., 1::2]) * turn
    return np.stack([turned.real, turned.imag], -1).reshape(x.shape)


def _rotate_halves(x: np.ndarray, rotary) -> np.ndarray:
    """As `_rotate`, where a pair's channels stand in either half."""
    cosine, sine = (_array(part) for part in rotary)
    if cosine.ndim == 3:  # a place of its own for each image of the batch
        cosine, sine = cosine[:, None], sine[:, None]
    first, second = np.split(x, 2, -1)
    return x * cosine + np.concatenate([-second, first], -1) * sine


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    logits = np.exp(logits - logits.max(-1, keepdims=True))
    return logits / logits.sum(-1, keepdims=True)


def _probabilities(query: np.ndarray, key: np.ndarray, bias: np.ndarray | None = None):
    logits = query @ key.transpose(0, 1, 3, 2) / np.sqrt(query.shape[-1])
    return softmax(logits if bias is None else logits + bias)


def cross(module, hidden_states, encoder_hidden_states=None, attention_mask=None, **others):
    """Image queries on text keys alone: PixArt, Sana, Kandinsky 3.

    Returns:
        Probabilities, shape (batch, heads, pixels, text keys).
    """
    heads = module.heads
    query = _norm(_project(module.to_q, _array(hidden_states), heads), module.norm_q)
    key = _norm(_project(module.to_k, _array(encoder_hidden_states), heads), module.norm_k)
    bias = None if attention_mask is None else _array(attention_mask)[:, None]
    return _probabilities(query, key, bias)


def _layer_norm(x: np.ndarray, norm) -> np.ndarray:
    """Over one head's channels or over all heads' (by the weight's size)."""
    if norm is None:
        return x
    weight = _array(norm.weight)
    batch, heads, length, channels = x.shape
    if weight.size != channels:
        x = x.transpose(0, 2, 1, 3).reshape(batch, length, -1)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + norm.eps)
    x = x * weight + _array(norm.bias)
    return x if x.ndim == 4 else x.reshape(batch, length, heads, -1).transpose(0, 2, 1, 3)


def rotated_cross(
    module,
    hidden_states,
    encoder_hidden_states=None,
    attention_mask=None,
    image_rotary_emb=None,
    query_rotary_emb=None,
    **others,
):
    """Rotated image queries on text keys without place: HunyuanDiT and Lumina-Next."""
    heads = module.heads
    query = _project(module.to_q, _array(hidden_states), heads)
    key_heads = heads * module.inner_kv_dim // module.inner_dim
    key = _project(module.to_k, _array(encoder_hidden_states), key_heads)
    query, key = _layer_norm(query, module.norm_q), _layer_norm(key, module.norm_k)
    key = np.repeat(key, heads // key_heads, axis=1)
    rotary = image_rotary_emb if query_rotary_emb is None else _array(query_rotary_emb)
    query = _rotate(query, rotary)
    bias = None
    if attention_mask is not None:
        bias = np.where(attention_mask.numpy(), 0.0, -np.inf)[:, None, None]
    return _probabilities(query, key, bias)


def pixels_then_text(module, hidden_states, encoder_hidden_states):
    """Image queries on the keys of pixels and, behind them, text: the priors of Cascade.

    Returns:
        Probabilities, shape (batch, heads, pixels, text keys and then the pixels').
    """
    pixels = hidden_states.shape[-2] * hidden_states.shape[-1]
    query = _project(module.to_q, _array(hidden_states.flatten(2).transpose(1, 2)), module.heads)
    key = _project(module.to_k, _array(encoder_hidden_states), module.heads)
    attention = _probabilities(query, key)
    return np.concatenate([attention[..., pixels:], attention[..., :pixels]], -1)


def sequence(
    module,
    hidden_states,
    encoder_hidden_states=None,
    image_rotary_emb=None,
    attention_mask=None,
    *,
    text: int,
    **others,
):
    """Image queries on the keys of one sequence of text and image: SD3, Flux, Qwen-Image.

    Args:
        module: The attention module. With ``add_q_proj`` the text has projections and norms of its
            own, otherwise it stands in ``hidden_states`` already, first.
        text: Number of text tokens.

    Returns:
        Probabilities, shape (batch, heads, pixels, text keys and then image keys).
    """
    heads, hidden = module.heads, _array(hidden_states)
    query = _norm(_project(module.to_q, hidden, heads), module.norm_q)
    key = _norm(_project(module.to_k, hidden, heads), module.norm_k)
    if encoder_hidden_states is not None:
        context = _array(encoder_hidden_states)
        key = np.concatenate(
            [_norm(_project(module.add_k_proj, context, heads), module.norm_added_k), key], 2
        )
        query = np.concatenate(
            [_norm(_project(module.add_q_proj, context, heads), module.norm_added_q), query], 2
        )
    if image_rotary_emb is not None:
        rotary = image_rotary_emb
        if rotary[0].is_complex():  # Qwen-Image: the image's, then the text's
            rotary = np.concatenate([_array(rotary[1]), _array(rotary[0])])
        query, key = _rotate(query, rotary), _rotate(key, rotary)
    bias = None
    if attention_mask is not None:
        keep = attention_mask.cpu().numpy()
        bias = np.where(keep, 0.0, -np.inf) if keep.dtype == bool else keep.astype(np.float64)
        bias = bias.reshape(bias.shape[0], 1, -1, bias.shape[-1])
        bias = bias if bias.shape[2] == 1 else bias[:, :, text:]
    return _probabilities(query[:, :, text:], key, bias)


def ragged_sequence(
    module,
    hidden_states,
    encoder_hidden_states=None,
    attention_mask=None,
    image_rotary_emb=None,
    freqs_cis=None,
    *,
    places,
    pixels: int,
    **others,
):
    """One sequence in which text and image stand elsewhere in each row: Lumina2, Z-Image-Omni.

    Args:
        places: For each row ``(text start, text length, image start)``; fewer are repeated.
        pixels: Number of image tokens.

    Returns:
        Probabilities, shape (batch, heads, pixels, keys); each row's text first, and zeros up to
        the longest text.
    """
    heads, hidden = module.heads, _array(hidden_states)
    query = _project(module.to_q, hidden, heads)
    key_heads = module.to_k.out_features * heads // module.to_q.out_features
    key = _project(module.to_k, hidden, key_heads)
    query, key = _norm(query, module.norm_q), _norm(key, module.norm_k)
    turn = _array(freqs_cis if image_rotary_emb is None else image_rotary_emb)
    query, key = _rotate(query, turn), np.repeat(_rotate(key, turn), heads // key_heads, axis=1)
    bias = None
    if attention_mask is not None:
        bias = np.where(attention_mask.numpy(), 0.0, -np.inf)[:, None, None]
    attention = _probabilities(query, key, bias)
    return text_first(attention, places, pixels)


def hunyuan_image_attention(
    module,
    hidden_states,
    encoder_hidden_states,
    attention_mask=None,
    image_rotary_emb=None,
    *,
    places,
):
    """HunyuanImage: the image, which alone is rotated, then the text, some of it masked.

    Args:
        places: As for `ragged_sequence`.

    Returns:
        As there.
    """
    heads, hidden, text = module.heads, _array(hidden_states), _array(encoder_hidden_states)
    pixels = hidden.shape[1]
    query = _norm(_project(module.to_q, hidden, heads), module.norm_q)
    key = _norm(_project(module.to_k, hidden, heads), module.norm_k)
    if module.add_q_proj is None:
        words = _norm(_project(module.to_k, text, heads), module.norm_k)
    else:
        words = _norm(_project(module.add_k_proj, text, heads), module.norm_added_k)
    query, key = _rotate(query, image_rotary_emb), _rotate(key, image_rotary_emb)
    bias = np.where(attention_mask.numpy(), 0.0, -np.inf)
    attention = _probabilities(query, np.concatenate([key, words], 2), bias)
    return text_first(attention, places, pixels)


def qwen_image_21_attention(
    module,
    hidden_states,
    attention_mask=None,
    rotary_emb=None,
    layer_cache=None,
    kv_cache_mode=None,
    key_valid=None,
    *,
    pixels: int,
    kept: dict,
    **others,
):
    """Qwen-Image 2.1: the text, then the image that attends to both; text keys of the first step.

    Args:
        kept: Where keys of the text are kept, by the cache that the model is given.
    """
    heads, hidden, turn = module.heads, _array(hidden_states), _array(rotary_emb)
    query = _rotate(_norm(_project(module.to_q, hidden, heads), module.norm_q), turn)
    key = _rotate(_norm(_project(module.to_k, hidden, heads), module.norm_k), turn)
    if kv_cache_mode == 'extract':
        kept[id(layer_cache)] = key[:, :, :-pixels]
    elif kv_cache_mode == 'cached':
        key = np.concatenate([kept[id(layer_cache)], key], 2)
    valid = attention_mask if kv_cache_mode == 'cached' else key_valid
    bias = None
    if valid is not None:
        bias = np.where(valid.numpy().reshape(len(key), 1, 1, -1), 0.0, -np.inf)
    return _probabilities(query[:, :, -pixels:], key, bias)


def nucleus_attention(
    module, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None
):
    """NucleusMoE: image queries on the image's and the text's keys, each shared by some heads.

    Returns:
        Probabilities, shape (batch, heads, pixels, text keys and then the image's).
    """
    heads, hidden = module.heads, _array(hidden_states)
    key_heads = heads * module.inner_kv_dim // module.inner_dim
    of_image, of_text = (_array(turn) for turn in image_rotary_emb)
    query = _norm(_project(module.to_q, hidden, heads), module.norm_q)
    key = _norm(_project(module.to_k, hidden, key_heads), module.norm_k)
    words = _project(module.add_k_proj, _array(encoder_hidden_states), key_heads)
    words = _norm(words, module.norm_added_k)
    query, key, words = _rotate(query, of_image), _rotate(key, of_image), _rotate(words, of_text)
    bias = None
    if attention_mask is not None:
        keep = attention_mask.numpy().reshape(len(key), -1)
        keep = np.concatenate([keep[:, key.shape[2] :], keep[:, : key.shape[2]]], 1)
        bias = np.where(keep, 0.0, -np.inf)[:, None, None]
    keys = np.repeat(np.concatenate([words, key], 2), heads // key_heads, axis=1)
    return _probabilities(query, keys, bias)


def _turn_by_matrices(x: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """Each pair of channels times a matrix of two by two, of (batch, 1 or heads, length, pairs)."""
    turned = np.einsum('bxlpij,bhlpj->bhlpi', matrices, x.reshape(*x.shape[:-1], -1, 2))
    return turned.reshape(x.shape)


def hidream_attention(
    module,
    hidden_states,
    hidden_states_masks=None,
    encoder_hidden_states=None,
    image_rotary_emb=None,
    *,
    pixels: int,
    text: int,
):
    """HiDream: image queries on the keys of the image, filled up with zeros, and of the texts.

    Returns:
        Probabilities, shape (batch, heads, pixels, text keys and then the image's).
    """
    heads, hidden = module.heads, _array(hidden_states)
    query = _norm(_project(module.to_q, hidden, heads), module.q_rms_norm)
    key = _norm(_project(module.to_k, hidden, heads), module.k_rms_norm)
    if hidden_states_masks is not None:
        key = key * _array(hidden_states_masks)[:, None, :, None]
    if encoder_hidden_states is not None:
        context = _array(encoder_hidden_states)
        more = _norm(_project(module.to_k_t, context, heads), module.k_rms_norm_t)
        key = np.concatenate([key, more], 2)
    matrices = _array(image_rotary_emb).transpose(0, 2, 1, 3, 4, 5)
    query = _turn_by_matrices(query[:, :, :pixels], matrices[:, :, :pixels])
    attention = _probabilities(query, _turn_by_matrices(key, matrices))
    image = attention.shape[-1] - text
    return np.concatenate([attention[..., image:], attention[..., :image]], -1)


def text_first(attention, places, pixels):
    """Put each row's text before its other keys, filled up with zeros to the longest text."""
    places = list(places) * (len(attention) // len(places))
    longest = max(length for _, length, _ in places)
    out = np.zeros((*attention.shape[:2], pixels, longest + attention.shape[-1]))
    for row, (start, length, image) in enumerate(places):
        if attention.shape[2] < image + pixels:
            continue  # a shorter text: the pass without the prompt
        rows = attention[row, :, image : image + pixels]
        text = slice(start, start + length)
        out[row, ..., :length] = rows[..., text]
        rest = np.concatenate([rows[..., : text.start], rows[..., text.stop :]], -1)
        out[row, ..., longest : longest + rest.shape[-1]] = rest
    return out


def single_projection_sequence(
    module, hidden_states, image_rotary_emb=None, attention_mask=None, *, text: int, **others
):
    """As `sequence`, of Flux.2's single blocks, which project everything at once."""
    heads = module.heads
    width = module.inner_dim
    projected = _array(hidden_states) @ _array(module.to_qkv_mlp_proj.weight).T
    query, key = (
        projected[..., start : start + width]
        .reshape(*projected.shape[:2], heads, -1)
        .transpose(0, 2, 1, 3)
        for start in (0, width)
    )
    query, key = _norm(query, module.norm_q), _norm(key, module.norm_k)
    query, key = _rotate(query, image_rotary_emb), _rotate(key, image_rotary_emb)
    return _probabilities(query[:, :, text:], key)


def shared_sequence(
    module,
    hidden_states,
    encoder_hidden_states=None,
    image_rotary_emb=None,
    attention_mask=None,
    *,
    text: int,
    halves: bool = False,
    **others,
):
    """As `sequence`, where one projection serves text and image: CogView, Krea, Ideogram.

    Args:
        text: Number of text tokens.
        halves: Whether rotary embeddings pair the channels of both halves. Where the text stands
            apart, only the image is rotated.
    """
    heads = getattr(module, 'heads', None) or module.num_heads
    hidden, first = _array(hidden_states), 0
    if encoder_hidden_states is not None:
        hidden = np.concatenate([_array(encoder_hidden_states), hidden], 1)
        first = text
    query = _norm(_project(module.to_q, hidden, heads), module.norm_q)
    kv_heads = getattr(module, 'num_kv_heads', heads)
    key = _norm(_project(module.to_k, hidden, kv_heads), module.norm_k)
    if image_rotary_emb is not None:
        rotate = _rotate_halves if halves else _rotate
        query, key = (
            np.concatenate([x[:, :, :first], rotate(x[:, :, first:], image_rotary_emb)], 2)
            for x in (query, key)
        )
    key = np.repeat(key, heads // kv_heads, 1)
    bias = None
    if attention_mask is not None:
        bias = np.where(attention_mask.numpy(), 0.0, -np.inf)
        bias = bias if bias.shape[2] == 1 else bias[:, :, text:]
    return _probabilities(query[:, :, text:], key, bias)


def z_image_attention(
    module,
    hidden_states,
    attention_mask=None,
    freqs_cis=None,
    *,
    image: int,
    text_start: int,
    **others,
):
    """Z-Image's layers: ``image`` tokens, filled up to ``text_start``, then the captions.

    Returns:
        Probabilities, shape (batch, heads, pixels, text keys and then the image's).
    """
    heads, hidden, turn = module.heads, _array(hidden_states), _array(freqs_cis)
    query = _rotate(_norm(_project(module.to_q, hidden, heads), module.norm_q), turn)
    key = _rotate(_norm(_project(module.to_k, hidden, heads), module.norm_k), turn)
    bias = None
    if attention_mask is not None:
        bias = np.where(attention_mask.numpy(), 0.0, -np.inf)[:, None, None]
    attention = _probabilities(query[:, :, :image], key, bias)
    return np.concatenate([attention[..., text_start:], attention[..., :text_start]], -1)


def prx_attention(
    module,
    hidden_states,
    encoder_hidden_states,
    attention_mask=None,
    image_rotary_emb=None,
    **others,
):
    """PRX: image queries on text keys, without place, and image keys."""
    heads = module.heads

    def parts(linear, hidden, count):
        projected = _array(hidden) @ _array(linear.weight).T
        shape = (*projected.shape[:2], count, heads, module.head_dim)
        return projected.reshape(shape).transpose(2, 0, 3, 1, 4)

    def turned(x):
        return _turn_by_matrices(x, _array(image_rotary_emb))

    query, key, _ = parts(module.img_qkv_proj, hidden_states, 3)
    words, _ = parts(module.txt_kv_proj, encoder_hidden_states, 2)
    query, key = turned(_norm(query, module.norm_q)), turned(_norm(key, module.norm_k))
    words = _norm(words, module.norm_added_k)
    keep = np.ones((len(key), words.shape[2] + key.shape[2]), bool)
    keep[:, : words.shape[2]] = attention_mask.numpy()
    bias = np.where(keep, 0.0, -np.inf)[:, None, None]
    return _probabilities(query, np.concatenate([words, key], 2), bias)


@contextmanager
def attention_of(denoiser, is_text_attention, compute):
    """Collects ``(module name, probabilities)`` of each call of each chosen attention module.

    Args:
        denoiser: The network.
        is_text_attention: ``name -> bool``, which modules to look at.
        compute: ``(module, *args, **kwargs) -> probabilities``, with the module's arguments.
    """
    seen, handles = [], []

    def look(name):
        def hook(module, args, kwargs):
            seen.append((name, compute(module, *args, **kwargs)))

        return hook

    for name, module in denoiser.named_modules():
        if is_text_attention(name):
            handles.append(module.register_forward_pre_hook(look(name), with_kwargs=True))
    assert handles
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
