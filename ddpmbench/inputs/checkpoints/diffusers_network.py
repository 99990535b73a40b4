"""The network in the configuration file of a diffusers folder."""

from pathlib import Path

from ddpmbench.inputs.checkpoints.diffusers_files import AVERAGING
from ddpmbench.inputs.checkpoints.fields import Fields
from ddpmbench.inputs.checkpoints.image_size import ImageSize
from ddpmbench.inputs.checkpoints.weights import naming
from ddpmbench.network.unet_config import Resampling, UNetConfig

_CLASSES = ("UNet2DModel", "UNetModel", "UNetUnconditionalModel")
# What UNet2DModel takes where a file lacks the field.
_DEFAULTS: dict[str, object] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ("DownBlock2D", *["AttnDownBlock2D"] * 3),
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": (*["AttnUpBlock2D"] * 3, "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
_OLD_NAMES = {"down_blocks": "down_block_types", "up_blocks": "up_block_types"}
# Kind of block -> whether it has attention, and how it resamples; None: as the type field says.
_DOWN: dict[str, tuple[bool, Resampling | None]] = {
    "DownBlock2D": (False, "conv"),
    "AttnDownBlock2D": (True, None),
    "ResnetDownsampleBlock2D": (False, "block"),
}
_UP: dict[str, tuple[bool, Resampling | None]] = {
    "UpBlock2D": (False, "conv"),
    "AttnUpBlock2D": (True, None),
    "ResnetUpsampleBlock2D": (False, "block"),
}
_RESAMPLING: dict[str, Resampling] = {"conv": "conv", "resnet": "block"}


def read_network(path: Path) -> tuple[UNetConfig, ImageSize | None]:
    """The network of a `config.json`, and the size of the images it was trained on.

    Raises:
        InputError: the file is damaged, or describes a network that our U-Net cannot express;
            the line names the field.

    Source: diffusers' UNet2DModel and its documented defaults.
    """
    fields = Fields.read(path, _DEFAULTS, _OLD_NAMES)
    if fields.values.get("_class_name") not in _CLASSES:
        raise fields.refusal("_class_name", "only UNet2DModel can be read")
    for name in sorted(fields.given - set(_DEFAULTS) - AVERAGING):
        if not name.startswith("_") and fields.values[name] is not None:
            raise fields.refusal(
                name, "not a field of UNet2DModel; remove it if the network does not depend on it"
            )
    channels = fields.integers("block_out_channels")
    if not channels:
        raise fields.refusal("block_out_channels", "must name at least one resolution")
    groups = fields.integer("norm_num_groups")
    shift = fields.text("resnet_time_scale_shift") == "scale_shift"
    fields.require("resnet_time_scale_shift", ("default", "scale_shift"))
    fields.require("center_input_sample", (False,))
    fields.require("time_embedding_type", ("positional",))
    fields.require("time_embedding_dim", (None, 4 * channels[0]))
    fields.require("mid_block_type", ("UNetMidBlock2D",))
    fields.require("mid_block_scale_factor", (1,))
    fields.require("act_fn", ("silu", "swish"))
    # with scale_shift, diffusers leaves the middle attention without a normalization if null
    fields.require("attn_norm_num_groups", (groups,) if shift else (None, groups))
    fields.require("add_attention", (True,))
    fields.require("class_embed_type", (None,))
    attention, resampling = _blocks(fields, len(channels))
    if resampling == "conv":
        fields.require("downsample_padding", (0, 1))
    head_channels = _optional_integer(fields, "attention_head_dim")
    if head_channels and any(
        c % head_channels for c in (channels[-1], *_with(channels, attention))
    ):
        raise fields.refusal("attention_head_dim", f"does not divide the channels {channels}")
    with naming(path):
        config = UNetConfig(
            in_channels=fields.integer("in_channels"),
            out_channels=fields.integer("out_channels"),
            model_channels=channels[0],
            channels=channels,
            num_blocks=fields.integer("layers_per_block"),
            attention=attention,
            head_channels=head_channels,
            num_classes=_optional_integer(fields, "num_class_embeds"),
            scale_shift=shift,
            resampling=resampling,
            symmetric_padding=fields.values["downsample_padding"] == 1,
            cosine_first=fields.flag("flip_sin_to_cos"),
            frequency_shift=fields.number("freq_shift"),
            norm_groups=groups,
            norm_eps=fields.number("norm_eps"),
            dropout=fields.number("dropout"),
        )
    return config, _image_size(fields)


def _blocks(fields: Fields, depth: int) -> tuple[tuple[bool, ...], Resampling]:
    """Which resolutions have attention, and how all of them resample."""
    attention: dict[str, list[bool]] = {}
    resampling: dict[str, Resampling] = {}
    for way, kinds in (("down", _DOWN), ("up", _UP)):
        field = f"{way}_block_types"
        types = [name.removeprefix("UNetRes") for name in fields.texts(field)]
        if len(types) != depth:
            raise fields.refusal(field, f"must be {depth} long, like block_out_channels")
        if unknown := [name for name in types if name not in kinds]:
            raise fields.refusal(field, f"{unknown[0]} cannot be read")
        attention[way] = [kinds[name][0] for name in types]
        # the last block of either way does not resample
        for name in types[:-1]:
            kind = kinds[name][1]
            if kind is None:
                fields.require(f"{way}sample_type", tuple(_RESAMPLING))
                kind = _RESAMPLING[fields.text(f"{way}sample_type")]
            if resampling.setdefault("", kind) != kind:
                raise fields.refusal(field, "resamples in more than one way, which cannot be read")
    if attention["down"] != attention["up"][::-1]:
        raise fields.refusal("up_block_types", "does not mirror down_block_types")
    return tuple(attention["down"]), resampling.get("", "conv")


def _with(channels: tuple[int, ...], chosen: tuple[bool, ...]) -> list[int]:
    return [width for width, wanted in zip(channels, chosen, strict=True) if wanted]


def _optional_integer(fields: Fields, name: str) -> int:
    """A field that is a positive number; 0 if it is null."""
    if fields.values[name] is None:
        return 0
    if not (value := fields.integer(name)):
        raise fields.refusal(name, "must be null or at least 1")
    return value


def _image_size(fields: Fields) -> ImageSize | None:
    size = fields.values["sample_size"]
    if size is None:
        return None
    if isinstance(size, list):
        sides = fields.integers("sample_size")
        if len(sides) != 2 or min(sides) < 1:
            raise fields.refusal("sample_size", "must be a number, or a height and a width")
        return sides[0] if sides[0] == sides[1] else (sides[0], sides[1])
    return fields.integer("sample_size")
