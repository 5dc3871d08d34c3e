"""Attention inside networks that `torch.compile` has compiled, as a whole or block by block.

Hooks inside a compiled network are skipped, or traced, and then every change of what they read
compiles it anew. So there are none: the network is compiled once more with the same settings, and
behind each attention call of its graphs stands one operator, which shows the queries and keys to
the recorder at work. What changes from step to step stays outside the graphs. The second
compilation is kept with the first and serves every later recorder; without a recorder the network
runs as it was compiled.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from freeatm_mm.attention.parts import is_wrapper, plain_name
from freeatm_mm.attention.sequence import AttentionCall, attention_call, deciding_arguments
from freeatm_mm.compat import compile_settings, keep_operator, recompile

__all__ = ['Region', 'compiled_regions']

_looks: ContextVar[tuple[Callable[[str, AttentionCall], None], ...]] = ContextVar(
    'looks', default=()
)
"""What the operator gives a layer's name in its region and its attention call."""

_SHOWN = '_freeatm_mm_shown'
"""Attribute of a compiled function: the same function with operators, by layers."""
_WATCHERS = '_freeatm_mm_watchers'
"""Attribute of the function that recorders put in its place: what they have it call."""

_Watcher = tuple[
    Callable[[tuple, dict], None], Callable[[str, AttentionCall], None], Callable[[], None]
]
"""Called before, during and after each run."""


@dataclass(frozen=True, eq=False)
class Region:
    """A part of a network that is compiled by itself: all of it, or a block.

    Args:
        name: In the network, `''` for all of it.
        module: What is compiled.
        holder: The module that holds the compiled function.
        attribute: Where it does.
    """

    name: str
    module: nn.Module
    holder: nn.Module
    attribute: str

    def layer(self, name: str) -> str:
        """Return the name in the denoiser of a layer of the region."""
        return '.'.join(filter(None, (self.name, name)))

    def holds(self, layer: str) -> bool:
        """Tell whether a layer of the denoiser is in the region."""
        return not self.name or layer == self.name or layer.startswith(f'{self.name}.')

    def inside(self, layer: str) -> str:
        """Return the name in the region of one of its layers."""
        return layer[len(self.name) :].lstrip('.')

    def watch(
        self,
        layers: frozenset[str],
        before: Callable[[tuple, dict], None],
        look: Callable[[str, AttentionCall], None],
        after: Callable[[], None],
    ) -> Callable[[], None]:
        """Have attention calls shown while the region runs.

        Args:
            layers: Names in their regions of the modules whose attention is shown. The same for
                all blocks that share a graph. None for a region whose runs alone are watched.
            before: Called with the arguments before each run.
            look: Called with a layer's name in the denoiser and its attention call, of which it
                must keep nothing: compiled code uses the memory again.
            after: Called after each run that didn't fail.

        Returns:
            What ends the watch.
        """
        watcher: _Watcher = (before, lambda name, call: look(self.layer(name), call), after)
        run = getattr(self.holder, self.attribute)
        # Recorders may begin and end in any order, so the last takes the watched function away.
        if not hasattr(run, _WATCHERS):
            run = _watched(run, layers)
            setattr(self.holder, self.attribute, run)
        watchers: list[_Watcher] = getattr(run, _WATCHERS)
        watchers.append(watcher)

        def end() -> None:
            watchers.remove(watcher)
            if not watchers:
                setattr(self.holder, self.attribute, run.__wrapped__)

        return end


def _watched(compiled: Callable, layers: frozenset[str]) -> Callable:
    """Make the function that calls watchers before, in and after each run of a compiled one."""
    shown = _with_operators(compiled, layers)
    watchers: list[_Watcher] = []

    @functools.wraps(compiled)
    def run(*args: Any, **kwargs: Any) -> Any:
        present = tuple(watchers)
        for before, _, _ in present:
            before(args, kwargs)
        mark = _looks.set((*_looks.get(), *(look for _, look, _ in present)))
        try:
            output = shown(*args, **kwargs)
        finally:
            _looks.reset(mark)
        for _, _, after in present:
            after()
        return output

    setattr(run, _WATCHERS, watchers)
    return run


def compiled_regions(network: nn.Module) -> list[Region]:
    """Find the parts of a network that are compiled; those inside another part are its own."""
    regions: list[Region] = []
    for name, module in network.named_modules():
        name = plain_name(name)
        if any(region.holds(name) for region in regions):
            continue
        if is_wrapper(module):
            regions.append(Region(name, module.get_submodule('_orig_mod'), module, 'forward'))
        elif getattr(module, '_compiled_call_impl', None) is not None:
            regions.append(Region(name, module, module, '_compiled_call_impl'))
    return regions


def _with_operators(compiled: Callable, layers: frozenset[str]) -> Callable:
    """Compile a function again with operators that show the attention of some layers, if any."""
    if not layers:
        return compiled
    kept = compiled.__dict__.setdefault(_SHOWN, {})
    if layers not in kept:
        settings = compile_settings(compiled)
        kept[layers] = recompile(settings, _ShowingBackend(settings.backend, layers))
    return kept[layers]


class _ShowingBackend:
    """A backend of `torch.compile` that gets each graph with the operators in it.

    Equal backends share their graphs, as the blocks of a network do.
    """

    def __init__(self, backend: Any, layers: frozenset[str]) -> None:
        self.backend = backend
        self.layers = layers

    def __call__(self, graph_module: fx.GraphModule, inputs: Any, **options: Any) -> Any:
        _insert_operators(graph_module, self.layers)
        return self.backend(graph_module, inputs, **options)

    def __getattr__(self, name: str) -> Any:
        if name == 'backend':
            raise AttributeError(name)
        return getattr(self.backend, name)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _ShowingBackend)
            and self.layers == other.layers
            and bool(self.backend == other.backend)
        )

    def __hash__(self) -> int:
        return hash(self.layers)


def _insert_operators(graph_module: fx.GraphModule, layers: frozenset[str]) -> None:
    """Put an operator before each attention call of some layers."""
    graph, changed = graph_module.graph, False
    for node in list(graph.nodes):
        layer = _layer_of(node, layers)
        if layer is None:
            continue
        *tensors, scale = deciding_arguments(*node.args, **node.kwargs)
        with graph.inserting_before(node):
            seen = [
                value if value is None else graph.call_method('detach', (value,))
                for value in tensors
            ]
            graph.call_function(_operator(), (*seen, scale, layer))
        changed = True
    if changed:
        graph.lint()
        graph_module.recompile()


def _layer_of(node: fx.Node, layers: frozenset[str]) -> str | None:
    """Return the layer whose attention a node computes, or `None`."""
    if node.op != 'call_function' or node.target is not F.scaled_dot_product_attention:
        return None
    for path, _ in reversed((node.meta.get('nn_module_stack') or {}).values()):
        name = _name_in_region(path)
        if name in layers:
            return name
    return None


def _name_in_region(path: str) -> str | None:
    """Read a module's name from the expression by which a graph reaches it, `L['self'].blocks.0`.

    `None` where it isn't reached from the module that is compiled.
    """
    found = re.fullmatch(r"L\['(?:self|fn|mod)'\](.*)", path)
    if not found:
        return None
    rest = found[1].replace(".__dict__['_modules']", '').replace('._modules', '')
    parts = re.findall(r"\.(\w+)|\[['\"]?(\w+)['\"]?\]", rest)
    return plain_name('.'.join(attribute or item for attribute, item in parts))


@functools.cache
def _operator() -> Any:
    """The operator that shows an attention call of a graph, registered with PyTorch."""
    tags = [
        getattr(torch.Tag, name)
        # What it does must happen at every run, not once while a CUDA graph is made.
        for name in ('cudagraph_unsafe',)
        if hasattr(torch.Tag, name)
    ]

    def show(
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        scale: float | None,
        layer: str,
    ) -> None:
        for look in _looks.get():
            look(layer, attention_call(query, key, mask, scale))

    operator = torch.library.custom_op(
        'freeatm_mm::show_attention',
        show,
        mutates_args=(),
        schema='(Tensor query, Tensor key, Tensor? mask, float? scale, str layer) -> ()',
        tags=tags,
    )
    operator.register_fake(lambda query, key, mask, scale, layer: None)
    keep_operator(operator)
    return operator._opoverload
