"""Encoders: networks that make one row of numbers of a tile, with what each of them wants its tiles to be like."""

from slideio_pipe.features.encoders.encoder import Encoder, EncoderOnDevice
from slideio_pipe.features.encoders.loading import load_encoder, load_encoders

__all__ = ["Encoder", "EncoderOnDevice", "load_encoder", "load_encoders"]
