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
    from ddpmbench.checkpoints import Checkpoint, CheckpointSettings, load_checkpoint
    from ddpmbench.checkpoints.custom import wrap_network
    from ddpmbench.data.images import ImageSet, load_images
    from ddpmbench.diffusion.data_range import DataRange
    from ddpmbench.diffusion.schedule import NoiseSchedule
    from ddpmbench.evaluate.compare import Comparison, compare
    from ddpmbench.evaluate.convert import Conversion, convert_checkpoint
    from ddpmbench.evaluate.fid import FidReport, FidSettings, evaluate_fid
    from ddpmbench.evaluate.inspect.inspection import Inspection, inspect_checkpoint
    from ddpmbench.evaluate.load_report import load_report
    from ddpmbench.evaluate.nll import NllReport, evaluate_nll
    from ddpmbench.evaluate.pictures import progressive_pictures
    from ddpmbench.evaluate.rate_distortion import RateDistortion, rate_distortion
    from ddpmbench.evaluate.report import write_report
    from ddpmbench.evaluate.sample import SampleReport, generate_samples
    from ddpmbench.evaluate.speed import SpeedReport, SpeedSettings, measure_speed
    from ddpmbench.execution.samples import SampleSettings
    from ddpmbench.execution.speed import SpeedPlan
    from ddpmbench.execution.terms import RunListener
    from ddpmbench.likelihood.terms import BoundTerms, bound_terms, prior_bits_per_dim
    from ddpmbench.samples.feature_networks import FeatureNetwork, load_feature_network
    from ddpmbench.samples.protocols import PROTOCOLS, Protocol
    from ddpmbench.samples.statistics import ReferenceStatistics, read_statistics

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
    "PROTOCOLS": "ddpmbench.samples.protocols",
    "FeatureNetwork": "ddpmbench.samples.feature_networks",
    "FidReport": "ddpmbench.evaluate.fid",
    "FidSettings": "ddpmbench.evaluate.fid",
    "Protocol": "ddpmbench.samples.protocols",
    "ReferenceStatistics": "ddpmbench.samples.statistics",
    "evaluate_fid": "ddpmbench.evaluate.fid",
    "load_feature_network": "ddpmbench.samples.feature_networks",
    "read_statistics": "ddpmbench.samples.statistics",
    "BoundTerms": "ddpmbench.likelihood.terms",
    "Checkpoint": "ddpmbench.checkpoints",
    "CheckpointSettings": "ddpmbench.checkpoints",
    "Comparison": "ddpmbench.evaluate.compare",
    "Conversion": "ddpmbench.evaluate.convert",
    "ImageSet": "ddpmbench.data.images",
    "Inspection": "ddpmbench.evaluate.inspect.inspection",
    "NllReport": "ddpmbench.evaluate.nll",
    "DataRange": "ddpmbench.diffusion.data_range",
    "NoiseSchedule": "ddpmbench.diffusion.schedule",
    "RateDistortion": "ddpmbench.evaluate.rate_distortion",
    "RunListener": "ddpmbench.execution.terms",
    "SampleReport": "ddpmbench.evaluate.sample",
    "SampleSettings": "ddpmbench.execution.samples",
    "SpeedPlan": "ddpmbench.execution.speed",
    "SpeedReport": "ddpmbench.evaluate.speed",
    "SpeedSettings": "ddpmbench.evaluate.speed",
    "bound_terms": "ddpmbench.likelihood.terms",
    "compare": "ddpmbench.evaluate.compare",
    "convert_checkpoint": "ddpmbench.evaluate.convert",
    "evaluate_nll": "ddpmbench.evaluate.nll",
    "inspect_checkpoint": "ddpmbench.evaluate.inspect.inspection",
    "generate_samples": "ddpmbench.evaluate.sample",
    "load_checkpoint": "ddpmbench.checkpoints",
    "load_images": "ddpmbench.data.images",
    "load_report": "ddpmbench.evaluate.load_report",
    "measure_speed": "ddpmbench.evaluate.speed",
    "prior_bits_per_dim": "ddpmbench.likelihood.terms",
    "progressive_pictures": "ddpmbench.evaluate.pictures",
    "rate_distortion": "ddpmbench.evaluate.rate_distortion",
    "wrap_network": "ddpmbench.checkpoints.custom",
    "write_report": "ddpmbench.evaluate.report",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'ddpmbench' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
