"""The base of all normalization layers: a function that combines moments, and autograd."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from sn_imagenet.norms.kernels import statistics_dtype
from sn_imagenet.norms.moments import BatchAverage, Moments, Statistics
from sn_imagenet.norms.op import normalize


@dataclass(frozen=True)
class Replicas:
    """How the samples of a batch share statistics, and what becomes of these.

    Attributes:
        count: R, the number of replicas (statistics groups) in the batch; sample j belongs to
            replica j mod R.
        process_group: the ranks that each replica spans, if several.
        holds_first: whether the batch's first replica is the experiment's, which running
            statistics follow.
        average: collects the batch statistics of all replicas instead; see
            :func:`~sn_imagenet.norms.collect_batch_averages`.
    """

    count: int = 1
    process_group: dist.ProcessGroup | None = None
    holds_first: bool = True
    average: BatchAverage | None = None


class MomentNorm2d(nn.Module, ABC):
    """Eq. (1), y = weight * (x - mean) / sqrt(var + eps) + bias, for any way of combining moments.

    A method is a subclass that implements :meth:`combine`. The arguments have the order and meaning
    of nn.BatchNorm2d's, so that every layer works as a timm ``norm_layer``. Methods without stored
    statistics accept ``momentum`` and ``track_running_stats`` and ignore them.

    Args:
        num_features: C.
        eps: added to the combined variance.
        momentum: weight of the newest batch in the running statistics; None averages all batches
            equally.
        affine: learn ``weight`` (initially 1) and ``bias`` (initially 0), each [C].
        track_running_stats: keep running statistics of the channels; without them, evaluation uses
            the batch's statistics too.
        bias: False leaves ``bias`` out.

    A layer can include the operations that follow it, without further memory traffic:
    ``layer(x, residual)`` adds a tensor of the output's shape, and ``layer.relu = True`` (an
    attribute, initially False) applies a ReLU at the end.

    Shape:
        Input and output [N, C, H, W], any floating dtype, any memory format.

    Raises:
        ValueError: the input is not 4D or not of a floating dtype, has a wrong number of channels,
            or differs in shape from the residual.
    """

    _version = 2  # of the state dict: nn.BatchNorm2d's, with num_batches_tracked

    trains_on_stored_statistics = False
    """Whether training uses them too; then every rank needs the first replica's at each step."""

    instance_correction = 0
    """Subtracted from HW in the divisor of each (sample, channel)'s variance, before combining."""

    relu = False
    """Whether the output goes through a ReLU."""

    backend: str | None = None
    """A backend's name, or None to choose by device, dtype and layout; see select_backend."""

    needs_all_replicas = False
    """Whether replicas share statistics, so that a rank needs all of its replicas in one pass."""

    replaces_relu = False
    """Whether the method includes its own activation (``relu = True``) for the ReLU after it."""

    normalizes_weights = False
    """Whether the method also needs weight-normalized convolutions."""

    def __init_subclass__(cls) -> None:
        """Show the parent's arguments in the signature of a subclass that passes them on."""
        super().__init_subclass__()
        own = inspect.signature(cls.__init__).parameters
        if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in own.values()):
            parent = next(base for base in cls.__mro__[1:] if issubclass(base, MomentNorm2d))
            extra = [one for one in own.values() if one.kind is one.KEYWORD_ONLY]
            left_out = {parameter.name for parameter in extra} | {"options"}
            every = inspect.signature(parent).parameters.values()
            common = [own.get(each.name, each) for each in every if each.name not in left_out]
            cls.__signature__ = inspect.Signature([*common, *extra])  # type: ignore[attr-defined]

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if num_features < 1:
            raise ValueError(f"num_features={num_features}: expected at least 1 channel")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self._factory = factory
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.weight = nn.Parameter(torch.ones(num_features, **factory)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features, **factory)) if affine and bias else None

        self.track_running_stats = track_running_stats and self.stores_statistics
        tracked = self.track_running_stats
        for name, initial in (("running_mean", torch.zeros), ("running_var", torch.ones)):
            self.register_buffer(name, initial(num_features, **factory) if tracked else None)
        count = torch.tensor(0, dtype=torch.long, device=device) if tracked else None
        self.register_buffer("num_batches_tracked", count)
        self.running_mean: Tensor | None
        self.running_var: Tensor | None
        self.num_batches_tracked: Tensor | None

        self.replicas = Replicas()

    @property
    def stores_statistics(self) -> bool:
        """Whether evaluation uses stored statistics of the training data."""
        return False

    @abstractmethod
    def combine(self, moments: Moments) -> Statistics:
        """Mean and variance to normalize with, each broadcastable to [n, R, C]."""

    def coefficients(self, moments: Moments) -> tuple[Tensor, Tensor, Tensor]:
        """Eq. (1) as center, scale and shift, each [N, C], from the result of :meth:`combine`."""
        center, var = self.combine(moments)
        scale = torch.rsqrt(var + self.eps)
        rows = moments.mean.flatten(0, 1)  # [N, C]
        if self.weight is not None:
            scale = scale * self.weight.to(scale.dtype)
        shift = torch.zeros_like(rows)
        if self.bias is not None:
            shift = self.bias.to(rows.dtype).expand_as(rows)
        shape = moments.mean.shape
        return center.expand(shape).reshape_as(rows), scale.expand(shape).reshape_as(rows), shift

    def batch_statistics(self, moments: Moments) -> Statistics:
        """BN's statistics: the batch's in training, the stored ones in evaluation."""
        if self._uses_stored_statistics:
            dtype = moments.mean.dtype
            mean, var = self._stored()
            return mean.to(dtype), var.to(dtype)
        return moments.batch()

    def after_step(self, progress: float) -> None:
        """Called after each optimizer step with the fraction of the training that is done, on every
        rank. What it changes must be in the state dict, or a resumed run differs."""

    @property
    def groups(self) -> tuple[int, dist.ProcessGroup | None]:
        """Number of statistics groups in a batch, and the ranks that each group spans."""
        return self.replicas.count, self.replicas.process_group

    def _check_input(self, x: Tensor, residual: Tensor | None) -> None:
        if x.dim() != 4 or x.shape[1] != self.num_features:
            raise ValueError(
                f"{type(self).__name__} got an input of shape {list(x.shape)}: expected "
                f"[N, {self.num_features}, H, W]"
            )
        if not x.is_floating_point():
            raise ValueError(
                f"{type(self).__name__} got an input of {x.dtype}: expected a floating dtype, "
                "such as that of x.float()"
            )
        if residual is not None and residual.shape != x.shape:
            raise ValueError(
                f"{type(self).__name__} got a residual of shape {list(residual.shape)}: expected "
                f"the input's, {list(x.shape)}"
            )

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        self._check_input(x, residual)
        if x.numel() == 0 or self._stored_statistics_suffice:
            return self._forward_without_moments(x, residual)
        y, batch = self._normalize(x, residual)
        if batch is not None:
            self._store_statistics(batch, x.shape)
        return y

    @property
    def _stored_statistics_suffice(self) -> bool:
        """Whether the layer normalizes with stored statistics only and needs no moments of x."""
        return False

    def _forward_without_moments(self, x: Tensor, residual: Tensor | None) -> Tensor:
        if x.numel() == 0:
            # Like nn.BatchNorm2d: zero gradients; the batch counts, but changes no statistics.
            if self._stores_batch:
                self._running_update(x.shape)
            used = [*self.parameters(recurse=False), *([] if residual is None else [residual])]
            return sum((tensor.sum() for tensor in used), x.clone())
        dtype = statistics_dtype(x.dtype)
        tables = (*self._stored(), self.weight, self.bias)
        mean, var, weight, bias = (t if t is None else t.to(dtype) for t in tables)
        y = F.batch_norm(x, mean, var, weight, bias, eps=self.eps)
        if residual is not None:
            y += residual
        return F.relu_(y) if self.relu else y

    def _normalize(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Statistics | None]:
        """The output by :meth:`combine` and autograd, and the batch's statistics [1, R, C] that are
        yet to be stored.
        """
        batch_moments: list[Moments] = []
        pixels = x.shape[2] * x.shape[3]
        if pixels <= self.instance_correction:
            raise ValueError(
                f"{type(self).__name__} got maps of {pixels} value: instance_correction="
                f"{self.instance_correction} needs more"
            )

        def coefficients(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            if self.instance_correction:
                var = var * (pixels / (pixels - self.instance_correction))
            batch_moments.append(Moments(mean, var, *self.groups))
            return self.coefficients(batch_moments[0])

        parameters = list(self.parameters(recurse=False))
        y = normalize(x, coefficients, parameters, self.backend, self.relu, residual)
        self._check_use_of_batch(batch_moments[0])
        return y, self._statistics_to_store(batch_moments[0]) if self._stores_batch else None

    @property
    def _stores_batch(self) -> bool:
        return self.training and self.stores_statistics

    def _statistics_to_store(self, moments: Moments) -> Statistics:
        return moments.batch()

    def _check_use_of_batch(self, moments: Moments) -> None:
        """Require that evaluation does not depend on its batches, unless the user wants it so."""
        if moments.has_batch and not self.stores_statistics:
            raise ValueError(
                f"{type(self).__name__} uses the batch's statistics: set stores_statistics = True "
                "in the class, so that evaluation has stored ones"
            )
        if moments.has_batch and self._uses_stored_statistics:
            raise ValueError(
                f"{type(self).__name__} uses its batch's statistics in evaluation too: in combine, "
                "call self.batch_statistics(moments) instead of moments.batch()"
            )

    @property
    def _uses_stored_statistics(self) -> bool:
        return self.track_running_stats and not self.training

    def _stored(self) -> Statistics:
        mean, var = self.running_mean, self.running_var  # once: nn.Module looks them up slowly
        assert mean is not None and var is not None
        return mean, var

    def _next_momentum(self) -> float | Tensor:
        """Count one more batch; return the weight of its statistics in the running ones."""
        count = self.num_batches_tracked
        assert count is not None
        count.add_(1)
        return count.double().reciprocal() if self.momentum is None else self.momentum

    @torch.no_grad()
    def _store_statistics(self, batch: Statistics, shape: torch.Size) -> None:
        """Add the statistics of a batch of ``shape`` to the batch average, or update the running
        ones by those of the first replica."""
        if self.replicas.average is not None:
            self.replicas.average.add(batch[0][0], batch[1][0])
        elif (update := self._running_update(shape)) is not None:
            momentum, unbias = update
            mean, var = self._stored()
            if isinstance(momentum, Tensor):
                momentum = momentum.to(mean.dtype)
            mean.lerp_(batch[0][0, 0].to(mean.dtype), momentum)
            var.lerp_((batch[1][0, 0] * unbias).to(var.dtype), momentum)

    @property
    def _updates_running(self) -> bool:
        """Whether a training-mode batch updates the running statistics."""
        shared = self.replicas
        return shared.average is None and shared.holds_first and self.track_running_stats

    def _running_update(self, shape: torch.Size) -> tuple[float | Tensor, float] | None:
        """The momentum of a batch of ``shape``, and the factor that makes its variance unbiased.
        Counts the batch. None if the running statistics are not updated."""
        if not self._updates_running:
            return None
        replicas, group = self.groups
        ranks = dist.get_world_size(group) if group is not None else 1
        count = shape[0] // replicas * ranks * shape[2] * shape[3]
        # Unbiased, as in nn.BatchNorm2d, unless the instances' variances already are. A single
        # value has no variance to correct.
        unbias = 1.0 if self.instance_correction else count / max(count - 1, 1)
        return self._next_momentum(), unbias

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *rest: Any
    ) -> None:
        # As nn.BatchNorm2d: old state dicts have no count.
        if self.num_batches_tracked is not None and local_metadata.get("version", 1) < 2:
            state_dict.setdefault(f"{prefix}num_batches_tracked", self.num_batches_tracked)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)

    def extra_repr(self) -> str:
        relu = ", relu=True" if self.relu else ""
        return f"{self.num_features}, eps={self.eps}, affine={self.affine}{relu}"
