"""ddpmbench measures denoising diffusion models.

    import ddpmbench as db
    checkpoint = db.load_checkpoint("google/ddpm-cifar10-32")
    images = db.load_images("cifar10:test", num_images=1000)
    report = db.evaluate_nll(checkpoint, images)

Names are imported when first used, so that `import ddpmbench` takes no time.
"""

import importlib
from typing import TYPE_CHECKING

from ddpmbench.errors import InputError
from ddpmbench.version import __version__

if TYPE_CHECKING:
    from ddpmbench.inputs.checkpoints import Checkpoint, CheckpointSettings, load_checkpoint
    from ddpmbench.inputs.checkpoints.wrap import wrap_network
    from ddpmbench.inputs.images import ImageSet, load_images
    from ddpmbench.inputs.statistics_files import ReferenceStatistics, read_statistics
    from ddpmbench.likelihood.terms import BoundTerms, bound_terms, prior_bits_per_dim
    from ddpmbench.process.data_range import DataRange
    from ddpmbench.process.schedule import NoiseSchedule
    from ddpmbench.quality.features import FeatureNetwork, load_feature_network
    from ddpmbench.quality.protocols import PROTOCOLS, Protocol
    from ddpmbench.questions.compare import Comparison, compare
    from ddpmbench.questions.convert import Conversion, convert_checkpoint
    from ddpmbench.questions.fid import FidReport, FidSettings, evaluate_fid
    from ddpmbench.questions.inspect import Inspection, inspect_checkpoint
    from ddpmbench.questions.load_report import load_report
    from ddpmbench.questions.nll import NllReport, evaluate_nll
    from ddpmbench.questions.pictures import progressive_pictures
    from ddpmbench.questions.rd import RateDistortion, rate_distortion
    from ddpmbench.questions.report import write_report
    from ddpmbench.questions.sample import SampleReport, generate_samples
    from ddpmbench.questions.speed import SpeedReport, SpeedSettings, measure_speed
    from ddpmbench.runs.generation import SampleSettings
    from ddpmbench.runs.rows import RunListener
    from ddpmbench.runs.speed import SpeedPlan

__all__ = [
    "PROTOCOLS",
    "BoundTerms",
    "Checkpoint",
    "CheckpointSettings",
    "Comparison",
    "Conversion",
    "DataRange",
    "FeatureNetwork",
    "FidReport",
    "FidSettings",
    "ImageSet",
    "InputError",
    "Inspection",
    "NllReport",
    "NoiseSchedule",
    "Protocol",
    "RateDistortion",
    "ReferenceStatistics",
    "RunListener",
    "SampleReport",
    "SampleSettings",
    "SpeedPlan",
    "SpeedReport",
    "SpeedSettings",
    "__version__",
    "bound_terms",
    "compare",
    "convert_checkpoint",
    "evaluate_fid",
    "evaluate_nll",
    "generate_samples",
    "inspect_checkpoint",
    "load_checkpoint",
    "load_feature_network",
    "load_images",
    "load_report",
    "measure_speed",
    "prior_bits_per_dim",
    "progressive_pictures",
    "rate_distortion",
    "read_statistics",
    "wrap_network",
    "write_report",
]

_HOMES = {
    "PROTOCOLS": "ddpmbench.quality.protocols",
    "FeatureNetwork": "ddpmbench.quality.features",
    "FidReport": "ddpmbench.questions.fid",
    "FidSettings": "ddpmbench.questions.fid",
    "Protocol": "ddpmbench.quality.protocols",
    "ReferenceStatistics": "ddpmbench.inputs.statistics_files",
    "evaluate_fid": "ddpmbench.questions.fid",
    "load_feature_network": "ddpmbench.quality.features",
    "read_statistics": "ddpmbench.inputs.statistics_files",
    "BoundTerms": "ddpmbench.likelihood.terms",
    "Checkpoint": "ddpmbench.inputs.checkpoints",
    "CheckpointSettings": "ddpmbench.inputs.checkpoints",
    "Comparison": "ddpmbench.questions.compare",
    "Conversion": "ddpmbench.questions.convert",
    "ImageSet": "ddpmbench.inputs.images",
    "Inspection": "ddpmbench.questions.inspect",
    "NllReport": "ddpmbench.questions.nll",
    "DataRange": "ddpmbench.process.data_range",
    "NoiseSchedule": "ddpmbench.process.schedule",
    "RateDistortion": "ddpmbench.questions.rd",
    "RunListener": "ddpmbench.runs.rows",
    "SampleReport": "ddpmbench.questions.sample",
    "SampleSettings": "ddpmbench.runs.generation",
    "SpeedPlan": "ddpmbench.runs.speed",
    "SpeedReport": "ddpmbench.questions.speed",
    "SpeedSettings": "ddpmbench.questions.speed",
    "bound_terms": "ddpmbench.likelihood.terms",
    "compare": "ddpmbench.questions.compare",
    "convert_checkpoint": "ddpmbench.questions.convert",
    "evaluate_nll": "ddpmbench.questions.nll",
    "inspect_checkpoint": "ddpmbench.questions.inspect",
    "generate_samples": "ddpmbench.questions.sample",
    "load_checkpoint": "ddpmbench.inputs.checkpoints",
    "load_images": "ddpmbench.inputs.images",
    "load_report": "ddpmbench.questions.load_report",
    "measure_speed": "ddpmbench.questions.speed",
    "prior_bits_per_dim": "ddpmbench.likelihood.terms",
    "progressive_pictures": "ddpmbench.questions.pictures",
    "rate_distortion": "ddpmbench.questions.rd",
    "wrap_network": "ddpmbench.inputs.checkpoints.wrap",
    "write_report": "ddpmbench.questions.report",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'ddpmbench' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
