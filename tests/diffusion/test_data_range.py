"""The range of the data: nothing is lost between pixels, levels and the model's numbers."""

import numpy as np
import pytest
import torch

from ddpmbench.diffusion.data_range import UNIT_RANGE, DataRange, EightBit
from ddpmbench.errors import InputError

PIXELS = torch.arange(256, dtype=torch.uint8)
RANGES = [
    UNIT_RANGE,
    DataRange(0.0, 1.0),
    DataRange(-0.5, 0.5),
    DataRange(0.0, 255.0),
    DataRange(-1.0, 1.0, 32),
    DataRange(0.0, 1.0, 2),
    DataRange(-2.5, 1.0, 7),
]


def test_the_range_of_the_paper_is_pixels_over_127_5_less_1():
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(UNIT_RANGE.to_model(PIXELS, dtype), PIXELS.to(dtype) / 127.5 - 1.0)
    assert UNIT_RANGE.half_bin == 1 / 255
    assert UNIT_RANGE.levels_a_unit == 127.5


@pytest.mark.parametrize("of", RANGES, ids=str)
def test_levels_are_evenly_spaced_from_end_to_end(of):
    levels = of.to_model(PIXELS).unique()
    assert len(levels) == of.levels
    assert levels[0] == of.low
    assert levels[-1].item() == pytest.approx(of.high, rel=1e-15)
    step = torch.tensor((of.high - of.low) / (of.levels - 1), dtype=torch.float64)
    assert torch.allclose(levels.diff(), step, rtol=1e-12)
    assert 2 * of.half_bin == pytest.approx(step.item(), rel=1e-15)


@pytest.mark.parametrize("of", RANGES, ids=str)
def test_a_pixel_is_the_level_of_its_top_bits(of):
    level = (of.to_model(PIXELS) - of.low) / (2 * of.half_bin)
    expected = [int(p / 256 * of.levels) for p in range(256)]
    assert level.round().tolist() == expected
    assert of.reduced(PIXELS.numpy()).tolist() == expected
    np.testing.assert_array_equal(of.array_to_model(PIXELS.numpy()), of.to_model(PIXELS).numpy())


@pytest.mark.parametrize("of", RANGES, ids=str)
def test_what_lies_between_goes_to_the_nearest_level_or_to_the_one_below(of):
    x, shown = of.to_model(PIXELS), torch.from_numpy(of.shown(PIXELS.numpy()))
    level = torch.from_numpy(of.reduced(PIXELS.numpy())).double()
    assert torch.equal(shown.double(), (level * 255 / (of.levels - 1)).round())
    for off in (-0.98, 0.0, 0.98):
        assert torch.equal(of.to_pixels(x + off * of.half_bin), shown)
    for off in (0.02, 1.98):
        assert torch.equal(of.to_pixels(x + off * of.half_bin, EightBit.TRUNCATE), shown)
    far = 5 * (of.high - of.low)
    outside = torch.tensor([of.low - far, of.high + far])
    for how in EightBit:
        assert of.to_pixels(outside, how).tolist() == [0, 255]
    assert of.clamp(outside).tolist() == [of.low, of.high]


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_pixels_of_a_picture_have_the_levels_that_it_shows(bits):
    of = DataRange(levels=2**bits)
    shown = of.shown(PIXELS.numpy())
    np.testing.assert_array_equal(of.reduced(shown), of.reduced(PIXELS.numpy()))


@pytest.mark.parametrize("of", RANGES, ids=str)
def test_a_distance_on_0_to_255_does_not_depend_on_the_range(of):
    shown = torch.from_numpy(of.shown(PIXELS.numpy())).double()
    found = (of.to_model(PIXELS) - of.low) * of.levels_a_unit
    assert (found - shown).abs().max() <= 0.5 + 1e-9  # of the rounding of a picture


def test_it_is_said_as_people_write_it():
    assert str(UNIT_RANGE) == "[-1, 1], 256 levels"
    assert DataRange(-0.5, 0.5).option == "-0.5,0.5"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((1.0, -1.0), "`data_range=1,-1`:"),
        ((0.0, 0.0), "`data_range=0,0`:"),
        ((0.0, float("inf")), "`data_range=0,inf`:"),
        ((float("nan"), 1.0), "`data_range=nan,1`:"),
        ((-1.0, 1.0, 1), "`levels=1`: choose from 2 to 256"),
        ((-1.0, 1.0, 257), "`levels=257`: choose from 2 to 256"),
    ],
)
def test_what_is_no_range_is_refused(given, said):
    with pytest.raises(InputError) as refused:
        DataRange(*given)
    assert str(refused.value).startswith(said)
