"""What a long run takes, and what cheaper ones would, as it is said before it begins."""

from collections.abc import Iterable

from ddpmbench.runs.cost import WORTH_SAYING, Cost

_STEPS, _SAMPLES = (250, 100, 50), (10_000, 5_000)


def cost_lines(cost: Cost) -> list[str]:
    """Lines to be said of a run; none where it is short."""
    if cost.seconds < WORTH_SAYING:
        return []
    lines = [
        f"About {duration(cost.seconds)} on this device: {cost.num_samples:,} samples of "
        f"{cost.num_timesteps:,} steps {duration(cost.sampling)}, features of "
        f"{cost.num_images:,} images {duration(cost.seconds - cost.sampling)}"
    ]
    if cost.sampling < WORTH_SAYING:
        return lines
    fewer_steps = [steps for steps in _STEPS if 2 * steps <= cost.num_timesteps]
    fewer = [count for count in _SAMPLES if 2 * count <= cost.num_samples]
    if fewer_steps:
        options = _listed(
            (f"--timesteps {steps}", cost.with_timesteps(steps).seconds) for steps in fewer_steps
        )
        lines.append(f"Cheaper: {options}; another sampler, whose scores are another model's")
    if fewer:
        options = _listed(
            (f"--num-generated {count}", cost.with_samples(count).seconds) for count in fewer
        )
        lines.append(
            f"Cheaper: {options}; the distance is biased upwards more, and compares only with "
            "others of as many samples (fid_infinity is corrected for it)"
        )
    return lines


def _listed(options: Iterable[tuple[str, float]]) -> str:
    return ", ".join(f"{option} {duration(seconds)}" for option, seconds in options)


def duration(seconds: float) -> str:
    """A time in words, to two figures."""
    if seconds < 99:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    if minutes < 99:
        return f"{minutes:.0f} min"
    hours = minutes / 60
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"
