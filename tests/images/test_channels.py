"""Reductions over the channels equal NumPy's."""

from __future__ import annotations

import numpy as np
import pytest

from slideio_pipe.images.channels import channel_max, channel_mean, channel_min, channel_range


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.bool_])
@pytest.mark.parametrize("shape", [(0, 5, 3), (1, 1, 3), (7, 9, 3), (130, 64, 3)])
def test_reductions_equal_those_of_numpy(dtype: type, shape: tuple[int, ...]) -> None:
    """To the last bit, also of views with steps."""
    values = np.random.default_rng(0).integers(0, 256, shape)
    for image in (values.astype(dtype), np.asarray(values / 7, dtype)[::2, ::-1]):
        assert np.array_equal(channel_max(image), image.max(axis=2))
        assert np.array_equal(channel_min(image), image.min(axis=2))
        assert channel_max(image).dtype == channel_min(image).dtype == image.dtype
        if image.dtype != np.bool_:
            assert np.array_equal(channel_range(image), np.ptp(image, axis=2))
        mean = channel_mean(image)
        assert mean.dtype == np.float32
        assert np.array_equal(mean, image.mean(axis=2, dtype=np.float32))
