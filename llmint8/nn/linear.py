"""`Int8Linear`: an `nn.Linear` with an int8 weight and 16-bit outlier columns."""

from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from llmint8 import functional, ops
from llmint8.config import Int8Config
from llmint8.outliers import OutlierRule


class Int8Linear(nn.Linear):
    """A linear layer with an int8 weight whose outlier input columns run in floating point (LLM.int8()).

    Its tensors are plain parameters without gradient, so moving, copying, pickling, saving, tracing and offloading
    work as for any layer. Whatever `.to(dtype)` is asked for, the weight stays int8 and its scale fp32.

    Attributes:
        weight: int8 [out_features, in_features].
        weight_scale: fp32 [out_features, 1]; the float weight is about `weight * weight_scale`, times
        column_scale: fp32 [in_features], where columns are too small for int8 otherwise (see
            `functional.column_scale`); None in most layers.
        bias: Floating point [out_features], or None.
        outlier_columns: int64, the columns that calibration found, in mode `"static"`; or None.
        int8_config: The runtime settings; may be replaced at any time.
        outlier_rule: The same as the operators take them; follows `int8_config`.
        code_names: Names of the int8 tensors, which have no more values than the float ones.
        scale_names: Names of what being int8 adds. All other tensors are those of the float layer.
    """

    code_names: ClassVar[tuple[str, ...]] = ("weight",)
    scale_names: ClassVar[tuple[str, ...]] = ("weight_scale", "column_scale", "outlier_columns")

    weight_scale: Parameter
    column_scale: Parameter | None
    outlier_columns: Parameter | None
    outlier_rule: OutlierRule

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        config: Int8Config | None = None,
    ) -> None:
        """Makes a layer with a weight of zeros, to be filled by `load_state_dict`.

        Args:
            in_features: K.
            out_features: N.
            bias: Whether there is a bias.
            device: Where all tensors are made.
            dtype: Dtype of the bias; the default dtype if None.
            config: Settings; the default ones if None.
        """
        nn.Module.__init__(self)
        self.in_features = in_features
        self.out_features = out_features
        self.int8_config = config or Int8Config()
        codes = torch.zeros(out_features, in_features, dtype=torch.int8, device=device)
        self.weight = Parameter(codes, requires_grad=False)
        scale = torch.ones(out_features, 1, dtype=torch.float32, device=device)
        self.weight_scale = Parameter(scale, requires_grad=False)
        if bias:
            self.bias = Parameter(torch.zeros(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.register_parameter("column_scale", None)
        self.register_parameter("outlier_columns", None)
        if self.int8_config.mode == "static":
            self.set_outlier_columns(torch.arange(self.int8_config.columns(in_features), device=device))

    @classmethod
    def from_float(cls, layer: nn.Module, config: Int8Config | None = None) -> Self:
        """Quantizes a float layer.

        Args:
            layer: An `nn.Linear`; it is not changed, and its bias is shared.
            config: Settings; the default ones if None.

        Returns:
            The int8 layer, on the same device and in the same training mode.

        Raises:
            TypeError: The weight is not floating point.
            ValueError: The weight has a NaN or Inf, or the mode is static, which only calibration can set.
        """
        if config is not None and config.mode == "static":
            raise ValueError(
                "mode='static' needs calibrated columns: quantize, then run llmint8.calibrate(model, batches)"
            )
        weight = cls.as_rows(layer.weight)  # type: ignore[arg-type]
        result = cls.empty_like(layer, config)
        codes, scale, column_scale = result.quantized(weight.detach())
        result.weight = Parameter(codes, requires_grad=False)
        result.weight_scale = Parameter(scale, requires_grad=False)
        result.set_column_scale(column_scale)
        result.bias = layer.bias  # type: ignore[assignment]
        return result.train(layer.training)

    @classmethod
    def empty_like(cls, layer: nn.Module, config: Int8Config | None = None) -> Self:
        """Makes an int8 layer on the meta device, of the shape, bias and dtype of a float layer.

        Args:
            layer: An `nn.Linear`.
            config: Settings; the default ones if None.
        """
        out_features, in_features = cls.as_rows(layer.weight).shape  # type: ignore[arg-type]
        has_bias = layer.bias is not None
        return cls(in_features, out_features, has_bias, "meta", layer.weight.dtype, config=config)  # type: ignore[arg-type]

    @staticmethod
    def as_rows(weight: Tensor) -> Tensor:
        """Views the weight of the float layer as [out_features, in_features], which it is already in most layers.

        Args:
            weight: As in the float layer or a checkpoint of it.
        """
        return weight

    def quantized(self, weight: Tensor, name: str = "the weight") -> tuple[Tensor, Tensor, Tensor | None]:
        """Quantizes a weight as this layer wants it.

        Args:
            weight: Floating point [out_features, in_features].
            name: For the message of an error.

        Returns:
            int8 codes, `weight_scale` and `column_scale`; not every checkpoint format has the last.

        Raises:
            TypeError: The weight is not floating point.
            ValueError: It is not a matrix, or has a NaN or Inf.
        """
        column_scale = self.column_scale_for(weight)
        if column_scale is not None:
            weight = weight / column_scale.to(weight.dtype)
        return *ops.quantize_weight(weight, name), column_scale

    def column_scale_for(self, weight: Tensor) -> Tensor | None:
        """Returns the `column_scale` that a weight gets in this layer, without quantizing it.

        Args:
            weight: Floating point [out_features, in_features].
        """
        stored = self.int8_config.has_column_scale
        has_values = weight.dim() == 2 and weight.numel() > 0 and not weight.is_meta
        return functional.column_scale(weight) if has_values and stored else None

    def to_float(self, dtype: torch.dtype | None = None) -> nn.Module:
        """Dequantizes into an `nn.Linear`.

        Args:
            dtype: Dtype of the weight and bias; that of the bias, or the default dtype without one, if None.
        """
        dtype = dtype or self._float_dtype()
        layer = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        layer.weight = Parameter(self.dequantized_weight(dtype))
        if self.bias is not None:
            layer.bias = Parameter(self.bias.detach().to(dtype))
        return layer.train(self.training)

    def dequantized_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns the weight as floating point [out_features, in_features]."""
        weight = ops.dequantize_weight(self.weight, self.weight_scale, dtype)
        return weight if self.column_scale is None else weight * self.column_scale.to(dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Applies the layer.

        Args:
            input: fp16, bf16 or fp32 [..., in_features]; cast as `nn.Linear` does under autocast.

        Returns:
            [..., out_features], dtype of the input.
        """
        x = input
        device_type = x.device.type
        if device_type != "meta" and torch.is_autocast_enabled(device_type) and x.dtype in ops.INPUT_DTYPES:
            x = x.to(torch.get_autocast_dtype(device_type))
        tensors: dict[str, Any] = self._parameters  # attributes of a module are slow to find
        if "weight" not in tensors:  # a replica of nn.DataParallel
            names = ("weight", "weight_scale", "bias", "column_scale", "outlier_columns")
            tensors = {name: getattr(self, name) for name in names}
        if (column_scale := tensors["column_scale"]) is not None:
            x = x * column_scale.to(x.dtype)
        return ops.int8_linear(
            x,
            tensors["weight"],
            tensors["weight_scale"],
            tensors["bias"],
            tensors["outlier_columns"],
            self.outlier_rule,
        )

    @property
    def int8_config(self) -> Int8Config:
        """The runtime settings."""
        return self._int8_config

    @int8_config.setter
    def int8_config(self, config: Int8Config) -> None:
        self._int8_config = config
        self.outlier_rule = config.rule(self.in_features)

    def set_column_scale(self, scale: Tensor | None) -> None:
        """Sets what columns of the input are multiplied by, or forgets it.

        Args:
            scale: fp32 [in_features], or None.
        """
        self.column_scale = None if scale is None else Parameter(scale, requires_grad=False)

    def set_outlier_columns(self, columns: Tensor | None) -> None:
        """Sets the columns of mode `"static"`, or forgets them.

        Args:
            columns: int64, indices in [0, in_features), or None.
        """
        self.outlier_columns = None if columns is None else Parameter(columns, requires_grad=False)

    def extra_repr(self) -> str:
        """Returns the arguments and the outlier setting."""
        config, columns = self.int8_config, self.outlier_columns
        outliers = {
            "threshold": f"threshold {config.threshold or 0:g}",
            "budget": f"budget {config.columns(self.in_features)}",
            "static": f"static {0 if columns is None else columns.numel()}",
        }
        return f"{super().extra_repr()}, outliers={outliers.get(config.mode or '', config.mode)}"

    def reset_parameters(self) -> None:
        """Refuses to make up weights: an int8 layer has those it was quantized from or has loaded.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError("an Int8Linear cannot be initialized at random; quantize a layer or load a state dict")

    def _float_dtype(self) -> torch.dtype:
        return torch.get_default_dtype() if self.bias is None else self.bias.dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # `.to(float16)`, `.half()` and their like must move the tensors and leave these dtypes alone.
        tensors = {name: getattr(self, name) for name in ("weight", "weight_scale", "column_scale")}
        kept = {name: tensor.data for name, tensor in tensors.items() if tensor is not None}
        super()._apply(fn, recurse)
        for name, tensor in kept.items():
            moved = getattr(self, name)
            if moved.dtype != tensor.dtype:
                setattr(self, name, Parameter(tensor.to(moved.device), requires_grad=False))
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # `Tensor.copy_` would turn a float weight into zeros, and an int8 one without its scale into noise.
        error_msgs: list[str] = args[-1]
        weight = state_dict.get(prefix + "weight")
        scale = state_dict.get(prefix + "weight_scale")
        if weight is not None and weight.dtype != torch.int8:
            error_msgs.append(f"{prefix}weight must be int8, got {weight.dtype}; quantize it first")
        elif weight is not None and scale is None:
            error_msgs.append(f"{prefix}weight is int8 but has no {prefix}weight_scale")
        elif scale is not None and scale.dtype != torch.float32:
            error_msgs.append(f"{prefix}weight_scale must be float32, got {scale.dtype}")
        elif (wrong := state_dict.get(prefix + "column_scale")) is not None and (
            wrong.dtype != torch.float32 or wrong.shape != (self.in_features,)
        ):
            expected = f"float32 [{self.in_features}]"
            error_msgs.append(f"{prefix}column_scale must be {expected}, got {wrong.dtype} {list(wrong.shape)}")
        else:
            column_scale = state_dict.get(prefix + "column_scale")
            if weight is not None:  # a new one brings its own scales
                found = None if column_scale is None else torch.empty_like(column_scale, device=self.weight.device)
                self.set_column_scale(found)
            columns = state_dict.get(prefix + "outlier_columns")
            if columns is not None and self.outlier_columns is not None:  # calibration decides how many there are
                self.set_outlier_columns(torch.empty_like(columns, device=self.outlier_columns.device))
            super()._load_from_state_dict(state_dict, prefix, *args)
