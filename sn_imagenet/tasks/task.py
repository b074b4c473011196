"""The interface of a task. A task provides data, network, losses, optimizers and the score. The
training loop handles epochs, the step handles replicas."""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.data.batches import ImageBatch
from sn_imagenet.data.datasets import DataSets, build
from sn_imagenet.data.loaders import BatchLoader, calibration_loader, eval_loader, train_loader
from sn_imagenet.distributed import Batch, Microbatch, Placement, rank, world_size
from sn_imagenet.errors import ConfigError
from sn_imagenet.models import SavedWeights, load_weights
from sn_imagenet.norms import norm_layers
from sn_imagenet.runs.scores import Score


@dataclass(frozen=True)
class Clock:
    """The length of a training, in optimizer steps."""

    steps_per_epoch: int
    total_steps: int


@dataclass(frozen=True)
class Losses:
    """``loss``: 0-d, the mean over the microbatch. ``sums``: by name, 0-d sums over its samples."""

    loss: Tensor
    sums: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Optimization:
    """An optimizer with its schedule.

    ``learning_rate``: the rate at optimizer step 0, 1, ... of the run; a parameter group may scale
    it with its own ``lr_scale``. ``max_norm``: clip the gradients to this norm; a parameter group
    may have its own.
    """

    optimizer: torch.optim.Optimizer
    learning_rate: Callable[[int], float]
    max_norm: float | None = None


class Evaluator(Protocol):
    """Accumulates one evaluation over the batches of all ranks."""

    def update(self, forward: Callable[..., Any], batch: Any) -> None:
        """Add this rank's next batch. ``forward`` calls the network, in evaluation mode and in the
        run's precision."""

    def gather(self) -> None:
        """Combine what the ranks have accumulated. Collective; called once, after all updates."""

    def finish(self) -> dict[str, Any]:
        """The results by name, ready for JSON, the same on every rank. The task's score is one of
        them."""


class Task(ABC):
    """What a run is about. A subclass states its score and how to build, train and evaluate.

    Args:
        config: of the run; ``config.task`` holds the task's own options.

    Options of a subclass are keyword arguments of its constructor after ``config``.
    """

    score: ClassVar[Score]
    """The number that stands for a run."""

    sums: ClassVar[tuple[str, ...]] = ()
    """Names of the sums that :meth:`losses` returns, in a fixed order."""

    phases: ClassVar[tuple[str, ...]] = ("train",)
    """Phases of an epoch, in order. Each has its batches and, if there are several, the optimizer
    of its name."""

    replica_by_replica: ClassVar[bool] = False
    """Whether each forward pass holds one replica and is seeded by (seed, step, replica), in an
    evaluation by (seed, batch). Necessary if a pass draws from PyTorch's global generator, or if
    the rows of an activation are not the samples of the batch (RoIs, time steps)."""

    max_processes: ClassVar[int | None] = None
    """1 if a run of the task cannot be distributed."""

    has_heads: ClassVar[bool] = False
    """Whether the network has heads, for which ``norm.head`` names another method."""

    calibrates: ClassVar[bool] = True
    """Whether the batch average of BN's statistics applies."""

    capturable: ClassVar[bool] = False
    """Whether :meth:`losses` does the same on the device at each step and never waits for it."""

    artifacts: ClassVar[tuple[str, ...]] = ()
    """Kinds of files that :meth:`write_artifacts` writes on request."""

    requires: ClassVar[Mapping[str, str]] = {}
    """Modules that the task needs, with the extra of this package that installs each."""

    def __init__(self, config: ExperimentConfig) -> None:
        self.config = config

    def datasets(self) -> DataSets:
        """Training and validation data (``val`` may be None) and the fingerprint of every file that
        decides a number; by default the images of ``data=``.

        Raises:
            UserError: the data are missing or unusable.
        """
        return build(self.config.data, self.config.augment, self.config.seed)

    @abstractmethod
    def network(self, data: DataSets) -> nn.Module:
        """The network on the CPU, a function of the seed. It is what checkpoints hold.

        Raises:
            ConfigError: the model or the normalization layer cannot be used.
        """

    def norm_args(self) -> dict[str, Any]:
        """The arguments of the method as the network uses them, recorded in the run. A task whose
        network needs others (fewer groups, no batch statistics) returns those."""
        return self.config.norm.args

    def load_initial(self, network: nn.Module, data: DataSets, saved: SavedWeights) -> list[str]:
        """Load the weights of ``init=`` into ``network``: by default those of another run of this
        task, with the same names and shapes. To start from a classifier's backbone, override it and
        give :func:`.load_weights` the part of the network, and of ``saved.weights``, that fit.

        Returns:
            What is not as in ``saved``, in a few words each.

        Raises:
            ConfigError: the weights do not fit.
        """
        load_weights(network, saved)
        return []

    def check_options(self) -> None:  # noqa: B027
        """Check, without opening data, that the config has what a training needs; also before the
        first run of a sweep.

        Raises:
            ConfigError: it does not.
        """

    def check(self, network: nn.Module, data: DataSets) -> None:  # noqa: B027
        """Check that network and data fit together, before any work.

        Raises:
            UserError: they do not.
        """

    @property
    def image_dtype(self) -> torch.dtype:
        """The dtype of training images on the device."""
        return torch.float32

    def batches(self, phase: str, data: DataSets, device: torch.device) -> BatchLoader:
        """This rank's batches of a phase: by default global batches of the training data, in
        another order in each phase."""
        return train_loader(
            data.train,
            global_batch=self.config.batch.total,
            rank=rank(),
            world_size=world_size(),
            seed=self.config.seed + (self.phases.index(phase) << 32),
            workers=self.config.data.workers,
            device=device,
            dtype=self.image_dtype,
        )

    @abstractmethod
    def optimizations(self, network: nn.Module, clock: Clock) -> dict[str, Optimization]:
        """The optimizers by name, of one phase or by phase."""

    @abstractmethod
    def losses(
        self, network: Callable[..., Any], microbatch: Microbatch[Any], step: int, phase: str
    ) -> Losses:
        """The loss of one forward pass at optimizer step ``step`` (from 0), within autocast.
        ``network`` is the network, perhaps under DistributedDataParallel."""

    def metrics(self, sums: Mapping[str, float], samples: int) -> dict[str, float]:
        """Training metrics by name, from sums over ``samples`` samples; by default their means."""
        return {name: value / samples for name, value in sums.items()}

    def warm_up_batch(self, samples: int) -> Batch:
        """A batch of zeros of ``samples`` samples, as a rank gets it in training; by default
        images."""
        side = self.config.data.image_size
        labels = torch.zeros(samples, dtype=torch.int64)
        return ImageBatch(torch.zeros(samples, 3, side, side, dtype=self.image_dtype), labels)

    def after_step(self, network: nn.Module, step: int) -> None:  # noqa: B027
        """Change weights after optimizer step ``step``, such as clamping them."""

    def forward(self, network: nn.Module, batch: Any) -> None:
        """A forward pass that only collects BN's statistics, for calibration."""
        network(batch.images)

    def calibration_loader(self, train: Any, **options: Any) -> Any:
        """The minibatches of a calibration; ``options`` are those of
        :func:`~sn_imagenet.data.loaders.calibration_loader`, by default this function."""
        return calibration_loader(train, **options)

    def evaluation_batches(self, data: DataSets, batch_size: int, device: torch.device) -> Any:
        """This rank's batches of an evaluation; by default each validation sample once."""
        assert data.val is not None, "a task without validation data overrides this"
        return eval_loader(
            data.val,
            batch_size=batch_size,
            rank=rank(),
            world_size=world_size(),
            workers=self.config.data.workers,
            device=device,
        )

    @abstractmethod
    def evaluator(
        self, data: DataSets, device: torch.device, batch_size: int, artifacts: Mapping[str, str]
    ) -> Evaluator:
        """Start an evaluation. ``artifacts``: the files requested besides the numbers, by kind."""

    def pictures(
        self, network: nn.Module, data: DataSets, device: torch.device
    ) -> dict[str, np.ndarray]:
        """Pictures for the tracker after a validation, by name: uint8 [H, W, 3]. ``network`` is in
        evaluation mode. Called on one rank."""
        return {}

    def write_artifacts(
        self, data: DataSets, evaluators: Mapping[str, Any], artifacts: Mapping[str, str]
    ) -> dict[str, bytes]:
        """The contents of the requested files by file name, from the evaluators by name."""
        return {}

    def describe(self, numbers: Mapping[str, Any]) -> str:
        """The score of an evaluation for the console, after the score's label."""
        value = numbers[self.score.key]
        if value is None:
            return "not finite"
        return self.score.format(value).removeprefix(f"{self.score.label} ")

    def departures(self, fingerprint: Mapping[str, Any]) -> list[dict[str, str]]:
        """Departures from the paper's protocol: [{"item", "paper", "ours"}, ...]."""
        return []


def sgd(
    network: nn.Module,
    config: ExperimentConfig,
    learning_rate: Callable[[int], float],
    options_of: Callable[[str, bool], Mapping[str, float]],
) -> dict[str, Optimization]:
    """The protocol's SGD over the trained parameters, in groups of equal options.

    Args:
        options_of: the options of a parameter, from its name in its module and whether the module
            is a normalization layer.
    """
    layers = norm_layers(network)
    groups: dict[tuple[tuple[str, float], ...], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        module, _, kind = name.rpartition(".")
        if parameter.requires_grad:
            options = tuple(options_of(kind, module in layers).items())
            groups.setdefault(options, []).append(parameter)
    params = [{"params": parameters, **dict(options)} for options, parameters in groups.items()]
    momentum = config.protocol.momentum
    optimizer = torch.optim.SGD(params, lr=config.initial_lr, momentum=momentum, fused=True)
    return {"optimizer": Optimization(optimizer, learning_rate)}


Fact = tuple[str, Any, Any]
"""An item of the protocol, the paper's value, and the run's."""


def differences(facts: Iterable[Fact]) -> list[dict[str, str]]:
    """:meth:`Task.departures`: the facts that differ."""
    return [
        {"item": item, "paper": str(paper), "ours": str(ours)}
        for item, paper, ours in facts
        if paper != ours
    ]


_RESERVED_SUMS = {
    "steps", "samples", "loss", "waited", "seconds", "total_seconds", "total_samples", "lr",
    "kind", "epoch", "step", "images_per_s", "data_wait_pct",
}  # fmt: skip


def build_task(config: ExperimentConfig) -> Task:
    """The task that ``config.task`` names.

    Raises:
        ConfigError: ``task.target`` is not a task, a package that it needs is not installed, an
            option is unknown or missing, or the task cannot run on this number of processes.
    """
    name, target = config.task["name"], config.task["target"]
    try:
        found = pkgutil.resolve_name(target)
    except Exception as error:
        raise ConfigError(
            f"task.target={target}: cannot be imported ({error}); expected the dotted path of a "
            "class, with its folder on PYTHONPATH if it is your own"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise ConfigError(f"task.target={target}: expected a subclass of sn_imagenet.tasks.Task")
    if reserved := _RESERVED_SUMS & set(found.sums):
        raise ConfigError(
            f"task.target={target}: a sum cannot be named {min(reserved)}, which training records "
            "itself"
        )
    for module, extra in found.requires.items():
        if find_spec(module) is None:
            raise ConfigError(
                f"task={name}: {module} is not installed; pip install -e '.[{extra}]'"
            )
    if (limit := found.max_processes) is not None and world_size() > limit:
        raise ConfigError(f"task={name} runs in one process only, but {world_size()} were started")
    read_before = ("name", "target", "single_sample", "row")
    try:
        return found(config, **{k: v for k, v in config.task.items() if k not in read_before})
    except TypeError as error:
        raise ConfigError(f"task={name}: {error}") from error


def require_task_placement(task: Task, config: ExperimentConfig, world_size: int) -> Placement:
    """Where this rank's replicas live, within the limits of the task.

    Raises:
        ConfigError: the number of processes, ``trainer.replicas_per_pass`` or ``norm.head`` does
            not suit the task or the setting.
    """
    name, per_pass = config.task["name"], config.trainer.replicas_per_pass
    if task.replica_by_replica:
        if per_pass not in (None, 1):
            raise ConfigError(
                f"trainer.replicas_per_pass={per_pass}: task={name} runs one replica per forward "
                "pass; leave trainer.replicas_per_pass=null"
            )
        if world_size > config.batch.gpus:
            raise ConfigError(
                f"task={name}: {world_size} processes for {config.batch.gpus} replicas; a replica "
                "cannot be split, use at most as many processes as replicas"
            )
        per_pass = 1
    if config.norm.head is not None and not task.has_heads:
        raise ConfigError(f"norm.head={config.norm.head['name']}: task={name} has no heads")
    return Placement(config.batch.gpus, config.batch.samples_per_gpu, world_size, rank(), per_pass)


def phase_position(lengths: Mapping[str, int], step_in_epoch: int) -> Iterator[tuple[str, int]]:
    """(phase, first step within it) of each phase that ``step_in_epoch`` steps leave unfinished."""
    for phase, length in lengths.items():
        if step_in_epoch < length:
            yield phase, step_in_epoch
        step_in_epoch = max(0, step_in_epoch - length)
