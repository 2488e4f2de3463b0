"""Encoders: networks that turn a tile into one row of features, with the input that each of them needs.

In: a network, a file, or a name of timm or Hugging Face. Out: ``Encoder``.
Open first: ``loading.py``, then ``encoder.py``.
"""

from slideio_pipe.features.encoders.encoder import Encoder, EncoderOnDevice
from slideio_pipe.features.encoders.loading import load_encoder, load_encoders

__all__ = ["Encoder", "EncoderOnDevice", "load_encoder", "load_encoders"]
