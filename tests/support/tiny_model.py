"""Writes a tiny random llama model as one GGUF v3 file. Standard library only; nothing is downloaded.

The weights are noise: only shape and speed matter, and a random model that is told to ignore its end token generates
as long as it is asked to. The vocabulary is pure ASCII on purpose: every token is a complete character sequence, so
one token is one server-sent event (llama.cpp holds incomplete UTF-8 back). It knows single characters, space + letter
and consonant + vowel, so " bodike" costs four tokens: " b", "o", "di", "ke".

The same shape and seed always give the same bytes. Layout of the file: magic, version, counts, metadata, tensor
descriptions, padding, tensors, each aligned to 32 bytes
(format: ggml's docs/gguf.md).
"""

from __future__ import annotations

import array
import random
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SPECIALS = ("<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>", "<|system|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

# GGUF value type codes, with the struct format of each scalar.
U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
FORMATS = {U32: "<I", I32: "<i", F32: "<f", BOOL: "<?"}
NORMAL_TOKEN, CONTROL_TOKEN = 1, 3
ALIGN = 32
NOISE_LEN = 100_003  # a prime: tensors cut from the pool do not line up


@dataclass(frozen=True, slots=True)
class ModelShape:
    """`heads` divides `dim`, `kv_heads` divides `heads`."""

    layers: int
    dim: int
    ffn: int
    heads: int
    kv_heads: int
    context: int = 8192

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads


# 1.7 MB. A 64-token prompt is nearly free, so only the slots limit it; a 1,024-token prompt takes as long as some two
# hundred decode steps, so that with slots to spare prefill limits it.
TINY = ModelShape(layers=2, dim=128, ffn=352, heads=2, kv_heads=1)


def write_model(path: Path, shape: ModelShape, seed: int = 0) -> Path:
    """Write the model to `path` and return it."""
    tokens, merges = _vocabulary()
    vocabulary = [*tokens, *SPECIALS]
    metadata = _metadata(shape, vocabulary, merges)
    noise = _noise(seed)
    descriptions, tensors, offset = [], [], 0
    for name, dims in _tensor_shapes(shape, len(vocabulary)):
        count = dims[0] * (dims[1] if len(dims) > 1 else 1)
        blob = array.array("f", [1.0] * count).tobytes() if "norm" in name else _take(noise, 4 * count)
        blob += _padding(len(blob))
        descriptions.append(
            _string(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
            + struct.pack("<IQ", 0, offset)  # type 0 is f32
        )  # fmt: skip
        tensors.append(blob)
        offset += len(blob)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)) + b"".join(metadata + descriptions)
    path.write_bytes(head + _padding(len(head)) + b"".join(tensors))
    return path


def _vocabulary() -> tuple[list[str], list[tuple[str, str]]]:
    """Return (tokens, merges), spelt with the printable symbols that byte-level BPE uses for bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = {byte: chr(byte) for byte in printable}
    for position, byte in enumerate(byte for byte in range(256) if byte not in symbols):
        symbols[byte] = chr(256 + position)
    merges = [(symbols[32], letter) for letter in "abcdefghijklmnopqrstuvwxyz"]
    merges += [(consonant, vowel) for vowel in "aeiou" for consonant in "bcdfghjklmnpqrstvwxyz"]
    tokens = [symbols[byte] for byte in (9, 10, *range(32, 127))]
    return tokens + [left + right for left, right in merges], merges


def _metadata(shape: ModelShape, vocabulary: Sequence[str], merges: Sequence[tuple[str, str]]) -> list[bytes]:
    """The encoded key/value section, one element per key."""
    specials_at = len(vocabulary) - len(SPECIALS)
    sizes = {
        "context_length": shape.context,
        "embedding_length": shape.dim,
        "block_count": shape.layers,
        "feed_forward_length": shape.ffn,
        "vocab_size": len(vocabulary),
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "rope.dimension_count": shape.head_dim,
    }
    kinds = [NORMAL_TOKEN] * specials_at + [CONTROL_TOKEN] * len(SPECIALS)
    return [
        _entry("general.architecture", STRING, "llama"),
        _entry("general.name", STRING, "tiny-random"),
        _entry("general.file_type", U32, 0),  # all tensors f32
        *(_entry(f"llama.{key}", U32, value) for key, value in sizes.items()),
        _entry("llama.attention.layer_norm_rms_epsilon", F32, 1e-5),
        _entry("llama.rope.freq_base", F32, 10000.0),
        _entry("tokenizer.ggml.model", STRING, "gpt2"),
        _entry("tokenizer.ggml.pre", STRING, "gpt-2"),
        _array("tokenizer.ggml.tokens", STRING, vocabulary),
        _array("tokenizer.ggml.token_type", I32, kinds),
        _array("tokenizer.ggml.merges", STRING, [f"{left} {right}" for left, right in merges]),
        _entry("tokenizer.ggml.bos_token_id", U32, specials_at),
        _entry("tokenizer.ggml.eos_token_id", U32, specials_at + 1),
        _entry("tokenizer.ggml.add_bos_token", BOOL, False),
        _entry("tokenizer.chat_template", STRING, CHAT_TEMPLATE),
    ]


def _tensor_shapes(shape: ModelShape, vocabulary_size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, dimensions) of every tensor, fastest dimension first."""
    kv_dim = shape.kv_heads * shape.head_dim
    yield "token_embd.weight", (shape.dim, vocabulary_size)
    yield "output_norm.weight", (shape.dim,)
    yield "output.weight", (shape.dim, vocabulary_size)
    for layer in range(shape.layers):
        yield f"blk.{layer}.attn_norm.weight", (shape.dim,)
        yield f"blk.{layer}.ffn_norm.weight", (shape.dim,)
        yield f"blk.{layer}.attn_q.weight", (shape.dim, shape.dim)
        yield f"blk.{layer}.attn_k.weight", (shape.dim, kv_dim)
        yield f"blk.{layer}.attn_v.weight", (shape.dim, kv_dim)
        yield f"blk.{layer}.attn_output.weight", (shape.dim, shape.dim)
        yield f"blk.{layer}.ffn_gate.weight", (shape.dim, shape.ffn)
        yield f"blk.{layer}.ffn_up.weight", (shape.dim, shape.ffn)
        yield f"blk.{layer}.ffn_down.weight", (shape.ffn, shape.dim)


def _noise(seed: int) -> Iterator[bytes]:
    """Gaussian float32 runs, cut at random offsets from one pool: quick, and random enough. Endless."""
    rng = random.Random(seed)
    pool = array.array("f", (rng.gauss(0, 0.02) for _ in range(NOISE_LEN))).tobytes()
    while True:
        yield pool[4 * rng.randrange(NOISE_LEN) :]


def _take(noise: Iterator[bytes], size: int) -> bytes:
    taken = bytearray()
    while len(taken) < size:
        taken += next(noise)
    return bytes(taken[:size])


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(kind: int, value: object) -> bytes:
    return _string(str(value)) if kind == STRING else struct.pack(FORMATS[kind], value)


def _entry(key: str, kind: int, value: object) -> bytes:
    return _string(key) + struct.pack("<I", kind) + _value(kind, value)


def _array(key: str, kind: int, values: Sequence[object]) -> bytes:
    head = _string(key) + struct.pack("<IIQ", ARRAY, kind, len(values))
    return head + b"".join(_value(kind, value) for value in values)


def _padding(size: int) -> bytes:
    return b"\0" * (-size % ALIGN)
