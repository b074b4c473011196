"""Normalisation layers as pool functions: batch, instance, layer and group normalisation."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from sn_imagenet.norms.backends import like, select_backend
from sn_imagenet.norms.batch_average import BatchAverage
from sn_imagenet.norms.cpp_mixture import CppTables
from sn_imagenet.norms.mixture import (
    CompiledMixture,
    Mixture,
    MixtureFunction,
    Parameters,
    Tables,
    takes_parameters,
)
from sn_imagenet.norms.moments import Moments, Statistics, check_divides
from sn_imagenet.norms.op import dense, normalize
from sn_imagenet.norms.triton_mixture import TritonTables

CLOSED_FORMS: dict[str, type[Tables]] = {"cpp": CppTables, "triton": TritonTables}
"""By backend: what pools a mixture's tables without autograd."""


class PooledNorm2d(nn.Module, ABC):
    """Eq. (1), y = weight * (x - mean) / sqrt(var + eps) + bias, for any way of pooling moments.

    A method is a subclass with a :meth:`pool`. The arguments are those of nn.BatchNorm2d, in its
    order and sense, so that every layer works as a timm ``norm_layer``; methods without stored
    statistics accept ``momentum`` and ``track_running_stats`` and have no use for them.

    Args:
        num_features: C.
        eps: added to the pooled variance.
        momentum: weight of the newest batch in the running statistics; None averages all batches
            equally.
        affine: learn ``weight`` (initially 1) and ``bias`` (initially 0), each [C].
        track_running_stats: keep running statistics of the batch's channels; without them the
            batch's own are used in evaluation too.

    A layer may also do what follows it, at no further traffic: ``layer(x, residual)`` adds a tensor
    of the output's shape, and ``layer.relu = True`` (an attribute, False at first) ends in a ReLU.

    Shape:
        Input and output [N, C, H, W], any floating dtype, any memory format.

    Raises:
        ValueError: the input is not 4D, has another number of channels, or another shape than the
            residual.
    """

    stores_statistics = False
    """Whether evaluation uses stored statistics of the training data."""

    trains_on_stored_statistics = False
    """Whether training uses them too, so that every rank needs the first replica's at each step."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_features < 1:
            raise ValueError(f"num_features={num_features}: expected at least 1 channel")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.weight = nn.Parameter(torch.ones(num_features, **factory)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features, **factory)) if affine else None

        self.track_running_stats = track_running_stats and self.stores_statistics
        tracked = self.track_running_stats
        self.register_buffer(
            "running_mean", torch.zeros(num_features, **factory) if tracked else None
        )
        self.register_buffer(
            "running_var", torch.ones(num_features, **factory) if tracked else None
        )
        count = torch.tensor(0, dtype=torch.long, device=device) if tracked else None
        self.register_buffer("num_batches_tracked", count)
        self.running_mean: Tensor | None
        self.running_var: Tensor | None
        self.num_batches_tracked: Tensor | None

        # Where the batch's samples come from; see set_replicas.
        self.replicas = 1
        self.process_group: dist.ProcessGroup | None = None
        self.holds_first_replica = True
        # Set while a calibration pass collects batch statistics; see collect_batch_averages.
        self.batch_average: BatchAverage | None = None
        # Whether the output passes a ReLU.
        self.relu = False
        # By name; None chooses by device, dtype and layout. See select_backend.
        self.backend: str | None = None
        self._plan_key: tuple[float, ...] = ()
        self._plan_of_key: CompiledMixture

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        # A method of one's own made from a built-in one must not be given that one's closed form.
        if "pool" in vars(cls) and "mixture" not in vars(cls):
            setattr(cls, "mixture", vars(PooledNorm2d)["mixture"])  # noqa: B010

    @abstractmethod
    def pool(self, moments: Moments) -> Statistics:
        """The method: mean and variance to normalise with, broadcastable to [n, R, C]."""

    def batch_statistics(self, moments: Moments) -> Statistics:
        """BN's statistics: the batch's in training, the stored ones in evaluation."""
        if self._uses_stored_statistics:
            dtype = moments.mean.dtype
            mean, var = self._stored
            return mean.to(dtype), var.to(dtype)
        return moments.batch()

    @property
    def groups(self) -> tuple[int, dist.ProcessGroup | None]:
        """The statistics groups of a batch, and the ranks over which each spans."""
        return self.replicas, self.process_group

    def _check_input(self, x: Tensor, residual: Tensor | None) -> None:
        if x.dim() != 4 or x.shape[1] != self.num_features:
            raise ValueError(
                f"{type(self).__name__} got an input of shape {list(x.shape)}: expected "
                f"[N, {self.num_features}, H, W]"
            )
        if residual is not None and residual.shape != x.shape:
            raise ValueError(
                f"{type(self).__name__} got a residual of shape {list(residual.shape)}: expected "
                f"the input's, {list(x.shape)}"
            )

    @property
    def mixture(self) -> Mixture | None:
        """The method as a mixture of members, if it is one: what its closed form needs to know.

        None leaves the method to :meth:`pool` and autograd.
        """
        return None

    @property
    def logits(self) -> tuple[Tensor | None, Tensor | None]:
        """The logits of a mixture's weights for means and variances; None for a single member."""
        return None, None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        self._check_input(x, residual)
        if x.numel() == 0:
            return x.clone()  # no moments, and as in nn.BatchNorm2d no new running statistics
        if self._needs_no_moments:
            return self._forward_stored(x, residual)
        if torch.compiler.is_compiling() or self.backend == "formula":
            return self._forward_pooled(x, residual, "formula")
        x = dense(x)
        backend = select_backend(x, self.backend)
        tables = CLOSED_FORMS.get(backend.name)
        if tables is not None and self.mixture is not None:
            stored = self._stored if self._uses_stored_statistics else None
            parameters = Parameters(self.weight, self.bias, *self.logits)
            if takes_parameters(x, (*parameters, *(stored or ()))):
                if residual is not None:
                    residual = like(residual, x)
                pooled = tables(self._plan(x.shape), self.groups[1])
                return self._forward_mixture(x, residual, pooled, stored, parameters)
        return self._forward_pooled(x, residual, backend.name)

    def _forward_mixture(
        self,
        x: Tensor,
        residual: Tensor | None,
        tables: Tables,
        stored: Statistics | None,
        parameters: Parameters,
    ) -> Tensor:
        y: Tensor
        if torch.is_grad_enabled():
            y = MixtureFunction.apply(x, residual, tables, self.relu, stored, *parameters)
        else:
            y = tables.forward(x, residual, self.relu, stored, parameters)
        if self.training and self.stores_statistics:
            if self.batch_average is not None:
                self.batch_average.add(*tables.batch())
            elif self.track_running_stats and self.holds_first_replica:
                replicas, group = self.groups
                ranks = dist.get_world_size(group) if group is not None else 1
                count = x.shape[0] // replicas * ranks * x.shape[2] * x.shape[3]
                mean, var = self._stored
                if takes_parameters(x, (mean, var)):
                    momentum = float(self._momentum())
                    tables.update_running(mean, var, momentum, count / max(count - 1, 1))
                else:
                    self._update_running(tables.batch(), count)
        return y

    @property
    def _needs_no_moments(self) -> bool:
        """Whether the stored statistics alone normalise, so that the sample's are not needed."""
        return False

    def _forward_stored(self, x: Tensor, residual: Tensor | None) -> Tensor:
        y = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )
        if residual is not None:
            y += residual
        return F.relu_(y) if self.relu else y

    def _plan(self, shape: torch.Size) -> CompiledMixture:
        replicas = self.groups[0]
        key = (*shape, replicas, self.eps)
        if self._plan_key != key:
            assert self.mixture is not None
            check_divides(shape[0], replicas)
            self._plan_of_key = CompiledMixture(self.mixture, shape, replicas, self.eps)
            self._plan_key = key
        return self._plan_of_key

    def _forward_pooled(self, x: Tensor, residual: Tensor | None, backend: str) -> Tensor:
        pooled: list[Moments] = []

        def coefficients(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            moments = Moments(mean, var, *self.groups)
            pooled.append(moments)
            center, variance = self.pool(moments)
            scale = torch.rsqrt(variance + self.eps)
            shape = moments.mean.shape
            if self.weight is None or self.bias is None:
                shift = torch.zeros_like(mean)
            else:
                scale = scale * self.weight
                shift = self.bias.to(mean.dtype).expand_as(mean)
            return (
                center.expand(shape).reshape_as(mean),
                scale.expand(shape).reshape_as(mean),
                shift,
            )

        parameters = list(self.parameters(recurse=False))
        y = normalize(x, coefficients, parameters, backend, self.relu, residual)
        if self.training and self.stores_statistics:
            self._store(pooled[0], area=x.shape[2] * x.shape[3])
        return y

    @property
    def _uses_stored_statistics(self) -> bool:
        return self.track_running_stats and not self.training

    @property
    def _stored(self) -> Statistics:
        assert self.running_mean is not None and self.running_var is not None
        return self.running_mean, self.running_var

    def _momentum(self) -> float | Tensor:
        """Counts one more batch; the weight of its statistics in the running ones."""
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        if self.momentum is None:
            return self.num_batches_tracked.double().reciprocal()
        return self.momentum

    @torch.no_grad()
    def _store(self, moments: Moments, area: int) -> None:
        mean, var = (table.detach()[0] for table in moments.batch())
        if self.batch_average is not None:
            self.batch_average.add(mean, var)
        elif self.track_running_stats and self.holds_first_replica:
            self._update_running((mean, var), moments.samples_per_group * area)

    def _update_running(self, batch: Statistics, count: int) -> None:
        """Move the running statistics towards the first replica's; ``batch`` is of [R, C]."""
        running_mean, running_var = self._stored
        momentum = self._momentum()
        # Unbiased, as nn.BatchNorm2d keeps it; one value alone has no spread to correct.
        unbiased = batch[1][0] * (count / max(count - 1, 1))
        if isinstance(momentum, Tensor):
            momentum = momentum.to(running_mean.dtype)
        running_mean.lerp_(batch[0][0].to(running_mean.dtype), momentum)
        running_var.lerp_(unbiased.to(running_var.dtype), momentum)

    def extra_repr(self) -> str:
        relu = ", relu=True" if self.relu else ""
        return f"{self.num_features}, eps={self.eps}, affine={self.affine}{relu}"


class BatchNorm2d(PooledNorm2d):
    """Batch normalisation (Ioffe and Szegedy 2015): over (N, H, W) of each replica's samples."""

    stores_statistics = True

    @property
    def mixture(self) -> Mixture | None:
        return Mixture(("bn",))

    def pool(self, moments: Moments) -> Statistics:
        return self.batch_statistics(moments)

    @property
    def _needs_no_moments(self) -> bool:
        return self._uses_stored_statistics and self.mixture is not None


class InstanceNorm2d(PooledNorm2d):
    """Instance normalisation (Ulyanov et al. 2016): over (H, W) of each sample's channel."""

    @property
    def mixture(self) -> Mixture:
        return Mixture(("in",))

    def pool(self, moments: Moments) -> Statistics:
        return moments.instance()


class LayerNorm2d(PooledNorm2d):
    """Layer normalisation (Ba et al. 2016): over (C, H, W) of each sample."""

    @property
    def mixture(self) -> Mixture:
        return Mixture(("ln",))

    def pool(self, moments: Moments) -> Statistics:
        return moments.layer()


class GroupNorm2d(PooledNorm2d):
    """Group normalisation (Wu and He 2018): over (C / G, H, W) of each sample.

    Args:
        num_groups: G; where it does not divide C, the greatest common divisor of both is used.
    """

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
        num_groups: int = 32,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        if num_groups < 1:
            raise ValueError(f"num_groups={num_groups}: expected at least 1")
        self.num_groups = math.gcd(num_groups, num_features)

    @property
    def mixture(self) -> Mixture:
        return Mixture(("gn",), self.num_groups)

    def pool(self, moments: Moments) -> Statistics:
        return moments.group(self.num_groups)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_groups={self.num_groups}"
