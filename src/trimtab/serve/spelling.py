"""The bytes of single tokens, for log-probabilities."""

import json
import re
from functools import cached_property
from typing import Any

from trimtab.rollout.engine import TokenLogprobs

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def byte_of_symbol() -> dict[str, int]:
    """The byte for each symbol of a byte-level tokenizer (Radford et al., 2019).

    >>> byte_of_symbol()["Ġ"], byte_of_symbol()["a"]
    (32, 97)
    """
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + number): b for number, b in enumerate(others)}


class Spelling:
    """Converts tokens to bytes.

    Args:
        tokenizer: a transformers tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._added = {int(i): token.content for i, token in tokenizer.added_tokens_decoder.items()}

    @cached_property
    def _symbols(self) -> dict[str, int]:
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        decoder = json.dumps(json.loads(backend.to_str()).get("decoder")) if backend is not None else ""
        return byte_of_symbol() if "ByteLevel" in decoder else {}

    @cached_property
    def longest(self) -> int:
        """Number of characters of the longest token. A text has at least its length divided by this many tokens."""
        return max(map(len, self._tokenizer.get_vocab()))

    def bytes_of(self, token: int) -> bytes:
        """The bytes of a token, which may be part of a character."""
        if token in self._added:
            return self._added[token].encode()
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if self._symbols and all(symbol in self._symbols for symbol in piece):
            return bytes(self._symbols[symbol] for symbol in piece)
        if (byte := _BYTE.fullmatch(piece)) is not None:
            return bytes([int(byte[1], 16)])
        return piece.replace("▁", " ").encode()

    def entry(self, logprobs: TokenLogprobs) -> dict[str, Any]:
        """Log-probabilities of one token in the API's format."""
        top = [self._one(token, logprob) for token, logprob in logprobs.top]
        return self._one(logprobs.token, logprobs.logprob) | {"top_logprobs": top}

    def _one(self, token: int, logprob: float) -> dict[str, Any]:
        spelled = self.bytes_of(token)
        # JSON has no -inf; the API uses -9999 for tokens that are almost impossible.
        return {"token": spelled.decode(errors="replace"), "logprob": max(logprob, -9999.0), "bytes": list(spelled)}
