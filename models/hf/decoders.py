"""The choice of a decoder for a model and its device."""

from models.hf.decode import Decoder, PlainDecoder
from models.hf.loading import LoadedModel


def make_decoder(loaded: LoadedModel) -> Decoder:
    """The fastest decoder that this model and device allow; its `reason` says why it isn't a faster one."""
    if loaded.device.type != "cuda":
        return PlainDecoder(loaded, f"captured decoding needs a GPU, the model is on {loaded.device.type}")
    from models.hf.captured import CapturedDecoder  # needs Triton, which only torch for CUDA includes

    reason = CapturedDecoder.unsuited(loaded)
    return PlainDecoder(loaded, reason) if reason else CapturedDecoder(loaded)
