"""The FAST action codec: a chunk of actions [T, D] as a few discrete tokens, and back (arXiv 2501.09747).

Encoding: orthonormal DCT-II over time, times `scale`, rounded to integers, flattened row by row (all dimensions of
frequency 0 first), each integer c as the character `chr(max(c - min_token, 0))`, byte-level BPE. Decoding is the way
back. A chunk of T x D values always has T x D coefficients, however many tokens.

The folder layout is that of `physical-intelligence/fast`: tokenizer.json and processor_config.json are read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from pizero.files import new_folder, read_file, read_json, values_of
from pizero.types import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer  # loaded where a codec is: most policies have none

OnMalformed: TypeAlias = Literal["raise", "zeros"]
Floats: TypeAlias = NDArray[np.floating[Any]]

_LARGEST_FILE = 64 << 20
TWO_BYTES = 0x800
"""Characters below have one or two bytes: those of the coefficients that `grammar` can write."""
_LARGEST_CHARACTER = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)
_REPLACEMENT = 0xFFFD
_PROCESSOR = "UniversalActionProcessor"
_MOST_TOKENS = 1 << 20


@dataclass(frozen=True)
class FastCodec:
    """tokenizer: byte-level BPE. scale: coefficients per unit of action. min_token: the coefficient of character 0.

    vocab_size: the size that was asked for when it was fitted; `size` is what it has. horizon, action_dim: of the
    chunks that it was fitted on, None where they were of several shapes.
    """

    tokenizer: Tokenizer
    scale: float
    min_token: int
    vocab_size: int
    horizon: int | None = None
    action_dim: int | None = None

    @property
    def size(self) -> int:
        """Token ids are 0 to size - 1."""
        return int(self.tokenizer.get_vocab_size())

    def encode(self, chunk: Floats, *, repair: bool = True) -> list[int]:
        """[T, D] normalised actions, about [-1, 1] -> token ids. See `encode_batch`."""
        return self.encode_batch(chunk[None], repair=repair)[0]

    def encode_batch(self, chunks: Floats, *, repair: bool = True) -> list[list[int]]:
        """[N, T, D] -> N lists of token ids.

        repair: a codec that was fitted on little data has no token for some characters, and the reference drops them
        without a word, so that the chunk cannot be decoded. They become the nearest character that has one. False is
        the reference to the letter. UserError for NaN, infinity and values too large for a character.
        """
        return self._encode_characters(chunks, repair)[0]

    def encode_repaired(self, chunks: Floats) -> tuple[list[list[int]], NDArray[np.bool_]]:
        """`encode_batch`, and for each chunk [N] whether a character of it had no token."""
        return self._encode_characters(chunks, True)

    def _encode_characters(self, chunks: Floats, repair: bool) -> tuple[list[list[int]], NDArray[np.bool_]]:
        characters = self.characters(chunks).reshape(len(chunks), -1)
        ids, repaired = self._encode([_text(row) for row in characters]), np.zeros(len(chunks), dtype=np.bool_)
        if repair and not self._complete:
            for row, tokens in enumerate(ids):
                if not np.array_equal(_code_points(self._decode(tokens)), characters[row]):
                    ids[row] = self._encode([_text(self._nearest(characters[row]))])[0]
                    repaired[row] = True
        return ids, repaired

    def characters(self, chunks: Floats) -> NDArray[np.int64]:
        """[..., T, D] actions -> [..., T, D] code points, frequencies in place of time."""
        with np.errstate(invalid="ignore", over="ignore"):
            scaled = np.around(_dct(chunks) * self.scale) - self.min_token
        if not np.isfinite(scaled).all():
            raise UserError("FAST codec: the actions hold NaN or infinity; repair the data")
        if scaled.size and scaled.max() > _LARGEST_CHARACTER:
            raise UserError(
                f"FAST codec: actions of {np.abs(chunks).max():.3g} have no character; normalise them to about [-1, 1]"
            )
        characters = np.maximum(scaled, 0).astype(np.int64)
        low, high = _SURROGATES
        if ((characters >= low) & (characters <= high)).any():
            raise UserError(
                f"FAST codec: actions of {np.abs(chunks).max():.3g} fall on halves of characters; normalise them to "
                "about [-1, 1]"
            )
        return characters

    def decode(
        self, tokens: Sequence[int], horizon: int, action_dim: int, *, on_malformed: OnMalformed = "raise"
    ) -> NDArray[np.float64]:
        """Token ids -> [horizon, action_dim] actions.

        Tokens that are not a chunk of this shape are a UserError: an unknown id, another number of coefficients, half
        a character. "zeros" answers as the reference does: ids beyond the vocabulary are dropped, half a character is
        the coefficient 65533 + min_token, and whatever then has another number of coefficients is all zeros.
        """
        zeros = np.zeros((horizon, action_dim))
        problem = None
        if any(token < 0 for token in tokens):
            problem = f"token {min(tokens)} is negative"
        elif on_malformed == "raise" and any(token >= self.size for token in tokens):
            problem = f"token {max(tokens)} is none of the codec's {self.size}"
        if problem is None:
            points = _code_points(self._decode([token for token in tokens if token < self.size]))
            if len(points) != horizon * action_dim:
                problem = f"{len(points)} coefficients, a chunk of {horizon} x {action_dim} has {horizon * action_dim}"
            elif on_malformed == "raise" and (points == _REPLACEMENT).any():
                problem = "half of a character"
            else:
                coefficients = (points + self.min_token).reshape(horizon, action_dim)
                return _idct(coefficients / self.scale)
        if on_malformed == "zeros":
            return zeros
        raise UserError(f"FAST codec: {len(tokens)} tokens that are no chunk: {problem}")

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """What each id adds to the UTF-8 text of a chunk."""
        return [_bytes_of(self.tokenizer.id_to_token(token) or "") for token in range(self.size)]

    def save(self, folder: Path | str) -> None:
        """Writes the published layout, but not its Python file: beside that, `transformers` opens the folder too."""
        with new_folder(Path(folder)) as new:
            self.tokenizer.save(str(new / "tokenizer.json"))
            auto_map = {"AutoProcessor": f"processing_action_tokenizer.{_PROCESSOR}"}
            config = {
                "action_dim": self.action_dim, "auto_map": auto_map, "min_token": self.min_token,
                "processor_class": _PROCESSOR, "scale": self.scale, "time_horizon": self.horizon,
                "vocab_size": self.vocab_size,
            }  # fmt: skip
            tokenizer_config = {
                "added_tokens_decoder": {}, "auto_map": auto_map, "clean_up_tokenization_spaces": False,
                "processor_class": _PROCESSOR, "tokenizer_class": "PreTrainedTokenizerFast",
            }  # fmt: skip
            for name, values in (
                ("processor_config.json", config),
                ("tokenizer_config.json", tokenizer_config),
                ("special_tokens_map.json", {}),
            ):
                (new / name).write_text(json.dumps(values, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path | str) -> FastCodec:
        """Reads a folder in the published layout. UserError names the file and what is wrong with it."""
        folder = Path(folder)
        path = folder / "processor_config.json"
        if not path.is_file():
            raise UserError(f"{folder} holds no FAST codec: no {path.name}; `pizero fit-codec` makes one")
        values = read_json(path)
        with values_of(path):
            scale, min_token = values["scale"], values["min_token"]
            vocab_size = values.get("vocab_size", 1024)
            horizon, action_dim = values.get("time_horizon"), values.get("action_dim")
            if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < 1e6:
                raise UserError(f"{path}: scale is {scale!r}, expected a number above 0")
            for name, value in (("min_token", min_token), ("vocab_size", vocab_size)):
                if isinstance(value, bool) or not isinstance(value, int) or abs(value) > _MOST_TOKENS:
                    raise UserError(f"{path}: {name} is {value!r}, expected a whole number")
            for name, value in (("time_horizon", horizon), ("action_dim", action_dim)):
                if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                    raise UserError(f"{path}: {name} is {value!r}, expected a whole number or null")
        return cls(_read_tokenizer(folder / "tokenizer.json"), scale, min_token, vocab_size, horizon, action_dim)

    @classmethod
    def fit(
        cls, chunks: Iterable[Floats], vocab_size: int = 1024, scale: float = 10, *, all_bytes: bool = True
    ) -> FastCodec:
        """A codec for chunks like these: normalised [T, D] each, or arrays [N, T, D].

        all_bytes: the alphabet is all 256 bytes, so that every chunk can be encoded. False takes the reference's
        alphabet, the characters of the coefficients seen, which leaves chunks without a token for one of theirs.
        UserError for a vocabulary that has no room for the alphabet, and for values so far from [-1, 1] (about 100 at a
        scale of 10) that their coefficients are not `TWO_BYTES`.
        """
        arrays = [array if array.ndim == 3 else array[None] for array in chunks]
        arrays = [array for array in arrays if array.size]
        if not arrays:
            raise UserError("FAST codec: no action chunks to fit it on")
        coefficients = [np.around(_dct(array) * scale) for array in arrays]
        lowest = float(np.min([array.min() for array in coefficients]))  # NaN where one value is
        highest = float(np.max([array.max() for array in coefficients]))
        if not np.isfinite(highest - lowest):
            raise UserError("FAST codec: the actions hold NaN or infinity; repair the data")
        if highest - lowest >= TWO_BYTES:
            raise UserError(f"FAST codec: {_far_away(arrays)}; repair the data, normalise it, or take a smaller scale")
        min_token, largest = int(lowest), int(highest) - int(lowest)
        alphabet = _byte_symbols() if all_bytes else [chr(point) for point in range(largest + 1)]
        if vocab_size <= len(alphabet):
            raise UserError(
                f"FAST codec: a vocabulary of {vocab_size} has no room for {len(alphabet)} characters and what is made "
                f"of them; take {2 * len(alphabet)} or more"
            )
        tokenizer, trainer = _untrained(vocab_size, alphabet)
        texts = (
            _text(row) for array in coefficients for row in (array - min_token).astype(np.int64).reshape(len(array), -1)
        )
        tokenizer.train_from_iterator(texts, trainer)
        shapes = {array.shape[1:] for array in arrays}
        horizon, action_dim = shapes.pop() if len(shapes) == 1 else (None, None)
        return cls(tokenizer, scale, min_token, vocab_size, horizon, action_dim)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return [list(encoding.ids) for encoding in self.tokenizer.encode_batch(texts, add_special_tokens=False)]

    def _decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(list(tokens), skip_special_tokens=False)

    @cached_property
    def _complete(self) -> bool:
        """Whether every byte has a token."""
        return all(self.tokenizer.token_to_id(symbol) is not None for symbol in _byte_symbols())

    @cached_property
    def _known(self) -> NDArray[np.int64]:
        """The code points that have tokens, of those up to where three bytes begin."""
        return np.array(
            [point for point in range(TWO_BYTES) if self._decode(self._encode([chr(point)])[0]) == chr(point)]
        )

    def _nearest(self, characters: NDArray[np.int64]) -> NDArray[np.int64]:
        if not len(self._known):
            raise UserError("FAST codec: its tokenizer encodes no character; take another codec")
        right = np.clip(np.searchsorted(self._known, characters), 1, max(len(self._known) - 1, 1))
        left, right = self._known[right - 1], self._known[np.minimum(right, len(self._known) - 1)]
        return np.where(characters - left <= right - characters, left, right)


def _far_away(arrays: list[Floats]) -> str:
    """The dimension with the largest value, and what that is."""
    largest = max((np.abs(array).max(axis=(0, 1)) for array in arrays), key=lambda values: float(values.max()))
    return f"action dimension {int(largest.argmax())} reaches {largest.max():.3g}, far from [-1, 1]"


def _untrained(vocab_size: int, alphabet: list[str]) -> tuple[Tokenizer, Any]:
    """Byte-level BPE and its trainer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(cast(Any, models.BPE)())
    parts: Any = tokenizer
    parts.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    parts.decoder = decoders.ByteLevel()
    parts.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = cast(Any, trainers.BpeTrainer)(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[],
        initial_alphabet=alphabet,
        max_token_length=10_000,
    )
    return tokenizer, trainer


def _byte_symbols() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def _read_tokenizer(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    try:
        tokenizer = Tokenizer.from_str(read_file(path, _LARGEST_FILE).decode())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); copy the codec again") from error
    except Exception as error:  # the library raises Exception itself
        raise UserError(f"{path}: no tokenizer ({str(error)[:200]}); copy the codec again") from error
    if not isinstance(cast(Any, tokenizer).model, BPE):
        raise UserError(f"{path}: a tokenizer of another kind, expected byte-level BPE; is it a FAST codec?")
    return tokenizer


def _text(characters: NDArray[np.int64]) -> str:
    return "".join(map(chr, characters.ravel().tolist()))


def _code_points(text: str) -> NDArray[np.int64]:
    return np.fromiter(map(ord, text), np.int64, len(text))


@cache
def _symbols() -> dict[str, int]:
    """The byte that each symbol of byte-level BPE stands for: GPT-2's table."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _bytes_of(token: str) -> bytes:
    """A token with a character that is no symbol stands for its own UTF-8 text."""
    table = _symbols()
    if all(character in table for character in token):
        return bytes(table[character] for character in token)
    return token.encode(errors="replace")


def _dct(actions: Floats) -> Floats:
    """[..., T, D] -> [..., T, D], over time. SciPy's own roundings decide where a coefficient lies between two."""
    from scipy import fft  # pyright: ignore[reportMissingTypeStubs]

    return cast(Any, fft).dct(actions, axis=-2, norm="ortho")


def _idct(coefficients: Floats) -> NDArray[np.float64]:
    from scipy import fft  # pyright: ignore[reportMissingTypeStubs]

    return cast(Any, fft).idct(coefficients, axis=-2, norm="ortho")
