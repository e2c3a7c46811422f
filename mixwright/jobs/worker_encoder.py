"""The encoder of a worker: the very one that the job was planned with."""

from __future__ import annotations

from mixwright.errors import ConfigError
from mixwright.indexes.encoders import EncoderSource, LoadedEncoder, load_encoder
from mixwright.jobs.marked_shards import use_one_thread


def load_worker_encoder(source: EncoderSource, device: str) -> LoadedEncoder:
    """Load an encoder in a worker, on the CPU with one thread.

    Raises ConfigError if its files on this machine are others than on the machine that planned the job.
    """
    if device == "cpu":
        use_one_thread()
    encoder = load_encoder(source.name, device)
    if encoder.revision != source.revision:
        raise ConfigError(
            f"encoder {source.name} has other files on the worker's machine: copy the same ones to every machine"
        )
    return encoder
