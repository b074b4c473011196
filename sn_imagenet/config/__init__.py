"""The typed configuration of a run, validated when it is composed.

Hydra composes the files in ``configs/``, which hold the defaults. :func:`from_hydra` turns the
result into an :class:`ExperimentConfig`, or raises a :class:`ConfigError` that names the value,
what was expected and how to fix it. Only keys that a YAML file may omit have a default here.
"""

from sn_imagenet.config.experiment import (
    CLASSIFICATION,
    CONFIGS,
    NON_EXPERIMENT_KEYS,
    ExperimentConfig,
    InitialRunError,
    from_dict,
    from_hydra,
    structured,
)
from sn_imagenet.config.running import (
    ESTIMATORS,
    CalibrationConfig,
    CheckpointConfig,
    TrainerConfig,
)
from sn_imagenet.config.sections import (
    IMAGENET_SAMPLES,
    TABLE_2_SETTINGS,
    AugmentConfig,
    DataConfig,
    DetectionProtocolConfig,
    ModelConfig,
    NormConfig,
    ProtocolConfig,
    SettingConfig,
)
