"""``batch=GxN`` for any numbers G and N, not only for those that configs/batch/ has a file of."""

import re

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

SETTINGS = "setting://"


class SettingSource(ConfigSource):
    """Has ``batch/GxN`` for any two numbers, and lists none: ``glob(*)`` finds files only."""

    @staticmethod
    def scheme() -> str:
        return "setting"

    def load_config(self, config_path: str) -> ConfigResult:
        setting = _match(config_path)
        if setting is None:
            raise ConfigLoadError(f"{config_path}: expected batch/GxN")
        values = {
            "gpus": int(setting[1]),
            "samples_per_gpu": int(setting[2]),
            "name": "${.gpus}x${.samples_per_gpu}",
        }
        path, config = self.full_path(), OmegaConf.create(values)
        return ConfigResult(self.provider, path, config, header={"package": None})

    def is_group(self, config_path: str) -> bool:
        return False

    def is_config(self, config_path: str) -> bool:
        return _match(config_path) is not None

    def available(self) -> bool:
        return True

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        return []


def _match(config_path: str) -> re.Match[str] | None:
    return re.fullmatch(r"batch/([0-9]+)x([0-9]+)(\.yaml)?", config_path)


class AppendSettings(SearchPathPlugin):
    """Searches the settings behind configs/. Hydra puts ``--config-dir`` before ``schema``."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("schema", SETTINGS)
