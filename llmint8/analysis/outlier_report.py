"""`outlier_report`: where the outlier features of a model are, layer by layer and as in Table 4 of the paper."""

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from llmint8.analysis.comparison import run, tracked
from llmint8.config import PAPER_THRESHOLD, matches
from llmint8.nn.forms import int8_form
from llmint8.quantize import default_skips

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

# Outlier values kept for the quartiles: at most so many of a column, and of all columns of an input together.
_KEPT_OF_COLUMN = 4096
_KEPT_OF_INPUT = 1 << 16

Quartiles = tuple[float, float, float]


@dataclass(frozen=True)
class OutlierColumn:
    """A column with outliers: of one input, or one feature dimension of all hidden states.

    Attributes:
        column: Its index.
        layers: Share of the transformer layers with an outlier in the column, 0 to 1; for the column of one input,
            1.
        positions: Share of the positions (tokens) with an outlier in the column, 0 to 1.
        quartiles: Quartiles of the outlier values: 25, 50 and 75 %, signed, in the unit of the threshold.
        one_sided: Whether all outlier values have the same sign.
        largest: Largest magnitude, in the unit of the threshold.
    """

    column: int
    layers: float
    positions: float
    quartiles: Quartiles
    one_sided: bool
    largest: float


@dataclass(frozen=True)
class InputOutliers:
    """The outliers in the input of a linear layer, or of several layers that get the very same input.

    Attributes:
        names: Names of the layers.
        block: Name of the transformer layer they are in: `"model.layers.3"`.
        kind: What they are in it: `"self_attn.q_proj/k_proj/v_proj"`.
        width: Number of columns.
        is_hidden: Whether its columns are feature dimensions of the hidden states.
        tokens: Number of positions (rows) seen.
        positions: Share of the positions with at least one outlier, 0 to 1.
        columns: The columns with outliers, those with outliers in most positions first.
    """

    names: tuple[str, ...]
    block: str
    kind: str
    width: int
    is_hidden: bool
    tokens: int
    positions: float
    columns: tuple[OutlierColumn, ...]


@dataclass(frozen=True)
class OutlierReport:
    """The outlier features of a model; prints as tables with rich.

    Attributes:
        threshold: Smallest magnitude of an outlier.
        relative: Whether magnitudes are divided by the root mean square of their row (token).
        tokens: Number of positions seen.
        hidden_size: Width of the inputs that are hidden states.
        min_layers: Share of the transformer layers that a feature must have outliers in.
        min_positions: Share of the positions of all hidden states that a feature must have outliers in.
        features: The outlier feature dimensions (section 4.1 and Table 4 of the paper), those with outliers in most
            positions first.
        inputs: Every input of linear layers, in the order of the model.
    """

    threshold: float
    relative: bool
    tokens: int
    hidden_size: int
    min_layers: float
    min_positions: float
    features: tuple[OutlierColumn, ...]
    inputs: tuple[InputOutliers, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as JSON values."""
        return dataclasses.asdict(self)

    def feature_table(self) -> "Table":
        """Returns the outlier features as a table with the columns of the paper's Table 4."""
        from rich.table import Table

        unit = " x rms" if self.relative else ""
        where = f"{self.min_layers:.0%} of the layers and {self.min_positions:.0%} of the positions"
        table = Table(title=f"Outlier features: {self.threshold:g}{unit} in {where}")
        for heading in ("feature", "layers", "positions", "quartiles", "largest"):
            table.add_column(heading, justify="right")
        table.add_column("one-sided")
        for f in self.features:
            quartiles = ", ".join(f"{q:.1f}" for q in f.quartiles)
            shares = (f"{f.layers:.0%}", f"{f.positions:.0%}")
            table.add_row(str(f.column), *shares, quartiles, f"{f.largest:.1f}", "yes" if f.one_sided else "no")
        return table

    def input_table(self) -> "Table":
        """Returns the outliers in the inputs of each kind of layer as a table."""
        from rich.table import Table

        table = Table(
            title=f"Outliers in the inputs of linear layers, {self.tokens} positions",
            caption="columns with outliers: median (most) of the layers; share of positions with one",
        )
        table.add_column("input of", no_wrap=True)
        for heading in ("width", "columns", "positions", "largest"):
            table.add_column(heading, justify="right")
        for kind in dict.fromkeys(i.kind for i in self.inputs):
            inputs = [i for i in self.inputs if i.kind == kind]
            counts = sorted(len(i.columns) for i in inputs)
            columns = f"{counts[len(counts) // 2]} ({counts[-1]})"
            positions = sum(i.positions * i.tokens for i in inputs) / sum(i.tokens for i in inputs)
            largest = max((c.largest for i in inputs for c in i.columns), default=None)
            magnitude = "-" if largest is None else f"{largest:.1f}"
            table.add_row(kind, str(inputs[0].width), columns, f"{positions:.1%}", magnitude)
        return table

    def __rich__(self) -> "Group":
        """Both tables, for `rich.print`."""
        from rich.console import Group

        return Group(self.feature_table(), self.input_table())


def outlier_report(
    model: nn.Module,
    batches: Iterable[Any],
    threshold: float = PAPER_THRESHOLD,
    relative: bool = False,
    *,
    min_layers: float = 0.25,
    min_positions: float = 0.06,
    not_hidden: Iterable[str] = (),
    progress: bool = False,
) -> OutlierReport:
    """Finds the outlier features of a model (section 4 of the paper) in the inputs of its linear layers.

    An outlier feature is a dimension of the hidden states with a magnitude of at least 6.0, in at least 25 % of the
    transformer layers and 6 % of the positions of all hidden states. As in the paper, hidden states are the inputs of
    the attention projections and of the first layer of the feed-forward network: those as wide as the hidden state.
    The wider input of the network's last layer is reported like any other, but is none. Layers that stay in 16 bit
    by default (the output head, routers) are left out, and so are layers that no batch reaches.

    The quartiles are exact up to 4096 outlier values of a column, and those of a uniform sample of that size beyond,
    fewer where more than 16 columns of an input have outliers: an input's columns share room for 65536 values.

    Args:
        model: A model with `nn.Linear` (or GPT-2's `Conv1D`) layers, float or int8, ours or bitsandbytes'. Experts
            that are fused into one parameter are not seen. What is reported is the input of a layer, before the
            `column_scale` that an int8 one may have.
        batches: Inputs of the model: a mapping is passed as keywords, a tuple or list as arguments, anything else as
            the only argument. Positions where the `attention_mask` of a mapping, [batch, tokens], is 0 do not count.
        threshold: Smallest magnitude of an outlier. A NaN or Inf is none.
        relative: Divides a magnitude by the root mean square of its row (token) first.
        min_layers: Smallest share of the transformer layers, 0 to 1.
        min_positions: Smallest share of the positions, 0 to 1.
        not_hidden: Layers whose input is not counted as a hidden state although it is as wide, by names as in
            `Int8Config.skip_modules`: `["o_proj"]`, since its columns belong to attention heads.
        progress: Shows a progress bar.

    Raises:
        ValueError: The threshold or a share is out of range, there are no linear layers, no batch reaches one, or a
            mask is not [batch, tokens] or belongs to an encoder-decoder.
    """
    if not 0 < threshold < float("inf"):
        raise ValueError(f"threshold must be finite and greater than 0, got {threshold}")
    for name, share in (("min_layers", min_layers), ("min_positions", min_positions)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must be a share between 0 and 1, got {share}")
    layers = linear_layers(model)
    statistics: dict[str, _Statistics] = {}  # by layer; layers with the same input have the same
    last: list[tuple[Tensor, _Statistics]] = []  # the input seen last, if any
    mask: Tensor | None = None

    def observe(name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        if last and last[0][0] is x and statistics.setdefault(name, last[0][1]) is last[0][1]:
            last[0][1].names[name] = None
            return
        found = statistics.setdefault(name, _Statistics(x.shape[-1]))
        found.names[name] = None
        found.add(counted_rows(x.detach(), mask), threshold, relative)
        last[:] = [(x, found)]

    with calling(layers, observe, before=True), torch.no_grad():
        for batch in tracked(batches, "Looking for outliers", progress):
            mask = padding_mask(model, batch)
            run(model, batch)
            last.clear()
    order = {name: i for i, name in enumerate(layers)}
    seen = sorted({id(s): s for s in statistics.values() if s.rows}.values(), key=lambda s: order[next(iter(s.names))])
    if not seen:
        raise ValueError(f"no batch reached any of the {len(layers)} linear layers")
    hidden_size = _hidden_size(model, seen)
    patterns = list(not_hidden)
    hidden = [s for s in seen if s.width == hidden_size and not any(matches(name, patterns) for name in s.names)]
    features = _columns(hidden) if hidden else []
    return OutlierReport(
        threshold=threshold,
        relative=relative,
        tokens=max(s.rows for s in seen),
        hidden_size=hidden_size,
        min_layers=min_layers,
        min_positions=min_positions,
        features=tuple(f for f in features if f.layers >= min_layers and f.positions >= min_positions),
        inputs=tuple(s.outliers(s in hidden) for s in seen),
    )


class _Statistics:
    """Outliers in an input, added up batch by batch on the CPU: counts of each column, and a sample of their values."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.names: dict[str, None] = {}  # of the layers, in order
        self.rows = 0
        self.rows_with_one = 0
        self.counts = torch.zeros(width, dtype=torch.int64)
        self.positives = torch.zeros(width, dtype=torch.int64)
        self.largest = torch.zeros(width)
        self._columns = torch.empty(0, dtype=torch.int64)
        self._values = torch.empty(0)
        self._keys = torch.empty(0)
        self._generator = torch.Generator().manual_seed(0)

    def add(self, rows: Tensor, threshold: float, relative: bool) -> None:
        """Adds the outliers of some rows [rows, width]."""
        values = rows.float()
        if relative:
            values = values / values.square().mean(dim=1, keepdim=True).sqrt()
        magnitudes = values.abs()
        hits = (magnitudes >= threshold) & (magnitudes < torch.inf)
        self.rows += rows.shape[0]
        self.rows_with_one += int(hits.any(dim=1).sum())
        columns, values = hits.nonzero()[:, 1].cpu(), values[hits].cpu()
        self.counts += columns.bincount(minlength=self.width)
        self.positives += columns[values > 0].bincount(minlength=self.width)
        self.largest.scatter_reduce_(0, columns, values.abs(), "amax")
        self._columns = torch.cat([self._columns, columns])
        self._values = torch.cat([self._values, values])
        self._keys = torch.cat([self._keys, torch.rand(len(values), generator=self._generator)])
        if len(self._values) > 2 * _KEPT_OF_INPUT:
            self._thin_out()

    def sample(self) -> tuple[Tensor, Tensor]:
        """Returns kept outlier values and their columns: of each column, all or a uniform sample."""
        self._thin_out()
        return self._values, self._columns

    def outliers(self, is_hidden: bool) -> InputOutliers:
        """Returns what is reported."""
        names = tuple(self.names)
        kinds = [block_and_kind(name)[1] for name in names]
        parents = {kind.rpartition(".")[0] for kind in kinds}
        joined = "/".join([kinds[0], *(k.rpartition(".")[2] if len(parents) == 1 else k for k in kinds[1:])])
        return InputOutliers(
            names=names,
            block=block_and_kind(names[0])[0],
            kind=joined,
            width=self.width,
            is_hidden=is_hidden,
            tokens=self.rows,
            positions=self.rows_with_one / self.rows,
            columns=tuple(_columns([self])),
        )

    def _thin_out(self) -> None:
        """Keeps the values with the smallest random keys in each column, which are a uniform sample of it."""
        present = int((self.counts > 0).sum())
        limit = min(_KEPT_OF_COLUMN, max(1, _KEPT_OF_INPUT // max(1, present)))
        order = self._keys.argsort()
        order = order[self._columns[order].argsort(stable=True)]
        sizes = self._columns.bincount(minlength=self.width)
        starts = sizes.cumsum(0) - sizes
        ranks = torch.arange(len(order)) - starts[self._columns[order]]
        order = order[ranks < limit]
        self._columns, self._values, self._keys = self._columns[order], self._values[order], self._keys[order]


def _columns(inputs: Sequence[_Statistics]) -> list[OutlierColumn]:
    """The columns with outliers, over one input or several of the same width taken together."""
    counts = torch.stack([i.counts for i in inputs])  # [inputs, width]
    total = counts.sum(dim=0)
    positives = torch.stack([i.positives for i in inputs]).sum(dim=0)
    largest = torch.stack([i.largest for i in inputs]).amax(dim=0)
    blocks = [block_and_kind(next(iter(i.names)))[0] for i in inputs]
    hit = torch.stack([(counts[[b == block for b in blocks]] > 0).any(dim=0) for block in dict.fromkeys(blocks)])
    layers = hit.float().mean(dim=0)
    quartiles = _quartiles(inputs, counts)
    rows = sum(i.rows for i in inputs)
    found = [
        OutlierColumn(
            column=c,
            layers=layers[c].item(),
            positions=total[c].item() / rows,
            quartiles=quartiles[c],
            one_sided=positives[c].item() in (0, total[c].item()),
            largest=largest[c].item(),
        )
        for c in total.nonzero()[:, 0].tolist()
    ]
    return sorted(found, key=lambda f: (-f.positions, f.column))


def _quartiles(inputs: Sequence[_Statistics], counts: Tensor) -> dict[int, Quartiles]:
    """Quartiles of the outlier values of each column: the smallest values that 25, 50 and 75 % do not exceed."""
    samples = [i.sample() for i in inputs]
    # A kept value stands for as many as its input had in the column for each one kept.
    weights = torch.cat(
        [(n / c.bincount(minlength=len(n)))[c] for n, (_, c) in zip(counts.double(), samples, strict=True)]
    )
    values, columns = (torch.cat(parts) for parts in zip(*samples, strict=True))
    order = values.argsort()
    order = order[columns[order].argsort(stable=True)]
    result = {}
    present, sizes = columns[order].unique_consecutive(return_counts=True)
    for column, part in zip(present.tolist(), order.split(sizes.tolist()), strict=True):
        shares = weights[part].cumsum(0) / weights[part].sum()
        at = torch.searchsorted(shares, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64) - 1e-12)
        q = values[part[at]].tolist()
        result[column] = (q[0], q[1], q[2])
    return result


def _hidden_size(model: nn.Module, inputs: Sequence[_Statistics]) -> int:
    """The hidden size that the model states, or else the width that most inputs have."""
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    stated = getattr(config, "hidden_size", None)
    return stated if isinstance(stated, int) else Counter(i.width for i in inputs).most_common(1)[0][0]


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Returns the linear layers of a model, float or int8, but those that stay in 16 bit by default.

    Args:
        model: Any module.

    Returns:
        Layers by name, in the order of the model; one that is used in two places once.

    Raises:
        ValueError: There are none.
    """
    skips: set[str] = set().union(*(function(model) for function in default_skips))
    layers = {
        name: module
        for name, module in model.named_modules()
        if name not in skips and (isinstance(module, nn.Linear) or int8_form(module) is not None)
    }
    if not layers:
        raise ValueError(f"{type(model).__name__} has no linear layers to look at")
    return layers


def block_and_kind(name: str) -> tuple[str, str]:
    """Splits the name of a layer into that of its transformer layer and what it is in it.

    Args:
        name: `"model.layers.3.self_attn.q_proj"` gives `"model.layers.3"` and `"self_attn.q_proj"`. A name without a
            number inside is both.
    """
    match = re.match(r"((?:.*?\.)?\d+)\.(.+)$", name)
    return (match[1], match[2]) if match else (name, name)


@contextmanager
def calling(layers: Mapping[str, nn.Module], function: Callable[..., Any], before: bool = False) -> Iterator[None]:
    """Calls a function at each call of some layers; what it returns replaces their input or output, if not None.

    Args:
        layers: By name.
        function: Called with the name, the layer, its arguments and, after the call, its output.
        before: Calls it before the layer instead of after.
    """
    hooks = []
    try:
        for name, layer in layers.items():
            register = layer.register_forward_pre_hook if before else layer.register_forward_hook
            hooks.append(register(functools.partial(function, name)))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def padding_mask(model: nn.Module, batch: Any) -> Tensor | None:
    """Returns the attention mask of a batch, or None if all positions count.

    Args:
        model: The model it is for.
        batch: As in `outlier_report`.

    Raises:
        ValueError: The mask is not [batch, tokens], or pads an encoder-decoder, whose two sequences it cannot tell
            apart.
    """
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if mask is None or bool(mask.all()):
        return None
    if mask.dim() != 2:
        raise ValueError(f"attention_mask must be [batch, tokens], got {list(mask.shape)}")
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ValueError("padded batches of an encoder-decoder are not supported; give sequences of one length")
    return mask


def counted_rows(x: Tensor, mask: Tensor | None) -> Tensor:
    """Returns the rows of a tensor that are not padding.

    Args:
        x: [..., K]: [batch, tokens, K] or [batch * tokens, K] where a mask is to act.
        mask: [batch, tokens], nonzero for what counts, or None.

    Returns:
        [rows, K].
    """
    rows = x.reshape(-1, x.shape[-1])
    if mask is None or not (x.shape[:-1] == mask.shape or (x.dim() == 2 and len(x) == mask.numel())):
        return rows
    return rows[mask.reshape(-1).to(x.device).bool()]
