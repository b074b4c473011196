"""Reading and writing of run directories: files, lock, config, metrics, result, progress.

Only ``checkpoint``, ``provenance`` and ``start`` import torch; import them by their full paths.
"""

from sn_imagenet.runs.directory import (
    RESULT_VERSION,
    RunDirectory,
    config_differences,
    experiment_values,
    flatten_config,
)
from sn_imagenet.runs.evaluations import deviations_from_config
from sn_imagenet.runs.files import RunError, write_atomically, write_json, write_text
from sn_imagenet.runs.lock import RunInUseError
from sn_imagenet.runs.metrics import MetricsFile, decompress_rows
from sn_imagenet.runs.record import (
    DIVERGED,
    FAILED,
    FINISHED,
    INTERRUPTED,
    NOT_EVALUATED,
    RUNNING,
    STATES,
    UNREADABLE,
    Cell,
    LayerWeights,
    Progress,
    Run,
    Setting,
    find_runs,
    progress_of,
    read_progress,
    read_run,
    run_from_result,
)
from sn_imagenet.runs.stages import stage_of
