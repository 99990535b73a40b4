"""`ddpmbench env`: versions, devices and caches."""

import click


@click.command(short_help="Versions, devices, data sets and caches here.")
def env() -> None:
    """Versions, devices, data sets and caches here, and what is missing."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from ddpmbench.checkpoints import load_checkpoint
    from ddpmbench.data.datasets import cache_folder, dataset_specs, is_at_hand
    from ddpmbench.execution.folder import describe_devices, source_revision, versions
    from ddpmbench.samples.feature_weights import feature_networks

    for name, version in versions().items():
        _line(name, version or f"missing: pip install {name}")
    _line("source revision", source_revision() or "an installed package")
    for device in describe_devices():
        _line("device", device)
    _line("checkpoint", f"default, sha256 {load_checkpoint().sha256[:12]}")
    for spec in dataset_specs():
        at_hand = is_at_hand(*spec.split(":"))
        _line("data set", f"{spec}, {'at hand' if at_hand else 'downloaded when asked for'}")
    for line in feature_networks():
        _line("feature network", line)
    _line("downloads go to", str(cache_folder()))
    _line("hub models go to", HF_HUB_CACHE)


def _line(name: str, value: str) -> None:
    click.echo(f"{name:<18}{value}")
