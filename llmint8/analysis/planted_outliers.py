"""`plant_outliers`: gives a small model the outlier features of a large one, without changing what it computes."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llmint8.nn.forms import int8_form
from llmint8.quantize import int8_layers

_DTYPES = (torch.float32, torch.float64)
# Of the largest output: fp32 rounding that some tens of layers have amplified; a real mistake is off by a factor of 20.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class PlantedNorm:
    """A norm with outlier features in its output.

    Attributes:
        norm: Name of the module.
        columns: Features that were scaled, indices in [0, K), in ascending order.
        factors: What each was multiplied by.
        linears: Names of the layers that read the output; the columns of their weights were divided by the same.
    """

    norm: str
    columns: tuple[int, ...]
    factors: tuple[float, ...]
    linears: tuple[str, ...]


def plant_outliers(
    model: nn.Module,
    columns: Sequence[int] | int = 6,
    factor: tuple[float, float] = (20.0, 60.0),
    seed: int = 0,
    layers: float | None = None,
    batch: Mapping[str, Any] | None = None,
) -> list[PlantedNorm]:
    """Scales a few features of every norm's output and divides the weights that read them by the same, in place.

    From 6.7 billion parameters on, the same six or seven feature dimensions hold large values in the inputs of all
    layers (section 4.1 and Table 4 of Dettmers et al. 2022, arXiv 2208.07339). Here they are planted in a model of any
    size: the output stays the same up to rounding, the inputs of its linear layers do not. Unlike most of the paper's,
    planted outliers have both signs.

    Which layers read which norm is seen in one forward pass, not known by the class of the model. A norm is left
    alone if anything but an `nn.Linear` or GPT-2's `Conv1D` reads its output (a residual in post-norm models, a
    router, fused experts), if such a layer reads something else too, or if a weight is shared with another module
    (a tied head). Norms that scale by `1 + weight` count as well.

    Args:
        model: A float model in evaluation mode, in fp32 or fp64.
        columns: How many of the K features, chosen at random and the same in all norms of that K; or which ones.
        factor: Smallest and largest factor, which are drawn uniformly for each norm and column.
        seed: Seed of the columns, factors and norms.
        layers: Share of the norms to plant in, in (0, 1], at least one; all if None.
        batch: Keywords of a small forward pass that reaches every part of the model; those that transformers has for
            it (`dummy_inputs`) if None.

    Returns:
        What was planted, in the order of the forward pass.

    Raises:
        TypeError: No batch is given and the model has none of its own.
        ValueError: An argument is out of range; the model is in training mode, quantized, on the meta device or in 16
            bit; there is no norm to plant in; or the output changed, since a weight is also read past its layer.
            Nothing has changed then.
    """
    _check_model(model)
    low, high = factor
    if not 0 < low <= high < math.inf:
        raise ValueError(f"factor must be two finite numbers above 0, the smaller first, got {factor}")
    if layers is not None and not 0 < layers <= 1:
        raise ValueError(f"layers must be a share in (0, 1] of the norms, or None for all, got {layers}")
    if batch is None:
        batch = getattr(model, "dummy_inputs", None)
        if batch is None:
            raise TypeError(f"a {type(model).__name__} has no dummy_inputs; give batch, the keywords of a forward pass")
        device = next(model.parameters()).device
        batch = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    trace = _Trace(model)
    before = trace.run(batch)
    generator = torch.Generator().manual_seed(seed)
    readers = trace.readers()
    chosen = {size: _chosen_columns(columns, size, generator) for size in sorted({_size(norm) for norm in readers})}
    if layers is not None and readers:
        order = torch.randperm(len(readers), generator=generator)[: max(1, round(layers * len(readers)))].tolist()
        readers = {norm: linears for i, (norm, linears) in enumerate(readers.items()) if i in order}
    changes = _Changes()
    with torch.no_grad():
        try:
            planted = _plant(trace, readers, chosen, factor, generator, changes)
            if not planted:
                raise ValueError(
                    f"{type(model).__name__} has no norm whose output only linear layers read (in post-norm models "
                    "the residual does, too); nothing was planted"
                )
            if not _same(before, _tensors(model(**batch))):
                raise ValueError(
                    f"the output of {type(model).__name__} changed, so that a weight is also read past its layer, or "
                    "the output is random or has a NaN; nothing was planted"
                )
        except BaseException:
            changes.undo()
            raise
    return planted


def _plant(
    trace: "_Trace",
    readers: Mapping[nn.Module, list[nn.Module]],
    chosen: Mapping[int, Tensor],
    factor: tuple[float, float],
    generator: torch.Generator,
    changes: "_Changes",
) -> list[PlantedNorm]:
    """Scales the chosen columns, by the norm's size, of every norm that allows it."""
    planted = []
    for norm, linears in readers.items():
        columns = chosen[_size(norm)]
        factors = torch.empty(len(columns)).uniform_(*factor, generator=generator)
        if changes.scale_norm(norm, columns, factors, *trace.calls[norm]):
            for linear in linears:
                changes.divide_columns(linear, columns, factors)
            names = tuple(trace.names[linear] for linear in linears)
            planted.append(PlantedNorm(trace.names[norm], tuple(columns.tolist()), tuple(factors.tolist()), names))
    return planted


def _check_model(model: nn.Module) -> None:
    if model.training:
        raise ValueError(f"{type(model).__name__} is in training mode; call model.eval() first")
    if any(int8_layers(model)):
        raise ValueError(f"{type(model).__name__} has int8 layers; plant outliers first, then quantize")
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ValueError(f"{name} has no data in memory; load the model without offloading")
        if parameter.is_floating_point() and parameter.dtype not in _DTYPES:
            raise ValueError(f"{name} is {parameter.dtype}, whose rounding would change the output; use torch.float32")


def _chosen_columns(columns: Sequence[int] | int, size: int, generator: torch.Generator) -> Tensor:
    """The features to scale in norms of a size, int64, in ascending order."""
    if isinstance(columns, int):
        if not 0 < columns <= size:
            raise ValueError(f"columns must be 1 to {size} of the norm's {size} features, got {columns}")
        return torch.randperm(size, generator=generator)[:columns].sort().values
    chosen = sorted(columns)
    if not chosen or len(set(chosen)) < len(chosen) or not 0 <= chosen[0] <= chosen[-1] < size:
        raise ValueError(f"columns must be different indices in [0, {size}), at least one, got {list(columns)}")
    return torch.tensor(chosen)


class _Trace(TorchDispatchMode):
    """Sees in one forward pass which linear layers read the output of which norm, and what else does.

    Attributes:
        names: Names of the modules that share no parameter with another.
        calls: Arguments and keywords of one call of each norm.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.calls: dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        uses = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
        own = {m: n for n, m in model.named_modules() if all(uses[id(p)] == 1 for p in m.parameters(recurse=False))}
        self.linears = [m for m in model.modules() if int8_form(m) is not None]
        self.norms = [m for m in own if _may_be_norm(m)]
        self.names = own
        self._norm_of: dict[int, nn.Module] = {}  # by storage
        self._kept: list[Tensor] = []  # a freed storage would give its address to another tensor
        self._sources: dict[nn.Module, set[nn.Module | None]] = {}  # what each linear layer reads
        self._spoiled: set[nn.Module] = set()  # norms that something else reads
        self._inside = 0

    def run(self, batch: Mapping[str, Any]) -> list[Tensor]:
        """Returns the tensors of the model's output."""
        hooks = [norm.register_forward_hook(self._after_norm, with_kwargs=True) for norm in self.norms]
        hooks += [linear.register_forward_pre_hook(self._before_linear, with_kwargs=True) for linear in self.linears]
        hooks += [linear.register_forward_hook(self._after_linear) for linear in self.linears]
        try:
            with torch.no_grad(), self:
                outputs = _tensors(self.model(**batch))
        finally:
            for hook in hooks:
                hook.remove()
        self._spoiled.update(norm for t in outputs if (norm := self._source(t)) is not None)
        return outputs

    def readers(self) -> dict[nn.Module, list[nn.Module]]:
        """Returns the norms to plant in, in the order in which they ran, and the linear layers that read each."""
        found: dict[nn.Module, list[nn.Module]] = {norm: [] for norm in self.calls}
        spoiled = set(self._spoiled)
        for linear, sources in self._sources.items():
            norms = [norm for norm in sources if norm is not None]
            if len(sources) > 1 or linear not in self.names:
                spoiled.update(norms)
            for norm in norms:
                found[norm].append(linear)
        return {norm: linears for norm, linears in found.items() if linears and norm not in spoiled}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self._inside == 0 and self._norm_of:
            views = set() if func._schema.is_mutable else {_storage(t) for t in _tensors(result)}
            for tensor in _tensors((args, kwargs)):
                norm = self._source(tensor)
                if norm is not None and _storage(tensor) not in views:  # a view reads nothing
                    self._spoiled.add(norm)
        return result

    def _source(self, tensor: Tensor) -> nn.Module | None:
        return self._norm_of.get(_storage(tensor))

    def _after_norm(self, norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if isinstance(output, Tensor) and output.numel() > 0 and output.shape[-1:] == (_size(norm),):
            self.calls.setdefault(norm, (args, kwargs))
            self._norm_of[_storage(output)] = norm
            self._kept.append(output)

    def _before_linear(self, linear: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = _tensors((args, kwargs))[0]
        norm = self._source(x)
        if norm is not None and x.shape[-1] != _size(norm):
            self._spoiled.add(norm)  # its features are no longer the last dimension
        self._sources.setdefault(linear, set()).add(norm)
        self._inside += 1

    def _after_linear(self, linear: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._inside -= 1


class _Changes:
    """Changes of weights, and how to undo them."""

    def __init__(self) -> None:
        self._old: list[tuple[Tensor, int, Tensor, Tensor]] = []  # weight, dimension, indices, values

    def scale_norm(
        self, norm: nn.Module, columns: Tensor, factors: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> bool:
        """Scales features of a norm's output, or changes nothing if its parameters do not allow that.

        Returns:
            Whether its output for some arguments is scaled as it should be.
        """
        output = norm(*args, **kwargs)
        expected = output.clone()
        expected[..., columns] *= factors.to(output)
        for offset in (0.0, 1.0):  # some models scale by `1 + weight`
            start = len(self._old)
            for name, parameter in norm.named_parameters():
                added = offset if name == "weight" else 0.0
                values = parameter[columns]
                self._set(parameter, 0, columns, (values + added) * factors.to(values) - added)
            if torch.allclose(norm(*args, **kwargs), expected, rtol=1e-3):
                return True
            self.undo(start)
        return False

    def divide_columns(self, linear: nn.Module, columns: Tensor, factors: Tensor) -> None:
        """Divides the columns of a weight, seen as [N, K]."""
        form = int8_form(linear)
        assert form is not None  # `linears` has no other layers
        weight = form.as_rows(linear.get_parameter("weight"))
        self._set(weight, 1, columns, weight[:, columns] / factors.to(weight))

    def undo(self, start: int = 0) -> None:
        """Takes back all changes but the first ones, bit for bit."""
        while len(self._old) > start:
            tensor, dim, columns, values = self._old.pop()
            tensor.index_copy_(dim, columns, values)

    def _set(self, tensor: Tensor, dim: int, columns: Tensor, values: Tensor) -> None:
        columns = columns.to(tensor.device)
        self._old.append((tensor, dim, columns, tensor.index_select(dim, columns)))
        tensor.index_copy_(dim, columns, values)


def _may_be_norm(module: nn.Module) -> bool:
    """Whether a module has a weight [K], perhaps a bias [K], and no other parameters; what it does is seen later."""
    parameters = dict(module.named_parameters())
    weight = parameters.get("weight")
    return (
        weight is not None
        and weight.ndim == 1
        and set(parameters) <= {"weight", "bias"}
        and all(p.shape == weight.shape for p in parameters.values())
    )


def _size(norm: nn.Module) -> int:
    return norm.get_parameter("weight").numel()


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _same(before: Sequence[Tensor], after: Sequence[Tensor]) -> bool:
    """Whether two outputs are the same up to rounding; a NaN never is."""
    pairs = [(a.double(), b.double()) for a, b in zip(before, after, strict=True) if a.numel() > 0]
    return all(bool((a - b).abs().max() <= _TOLERANCE * a.abs().max()) for a, b in pairs)
