"""Calibration, evaluation and the result of a run."""

from sn_imagenet.evaluation.calibration import calibrate
from sn_imagenet.evaluation.evaluate import (
    Evaluation,
    evaluate,
    importance_weight_records,
    validate,
    validate_calibrated,
)
from sn_imagenet.evaluation.request import EvaluationRequest
from sn_imagenet.evaluation.result import add_evaluations, all_departures, make_result, origin
from sn_imagenet.evaluation.run import evaluate_run, find_run_directories
