"""The keys of a running service: matched in constant time, read again on demand."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Sequence
from pathlib import Path

from mmf_deploy.errors import MMFError

from . import key_file
from .key_file import Key, digest_of

log = logging.getLogger(__name__)

MAX_KEY_CHARS = 256
"""Longer ones are refused unread: hashing a megabyte for everybody who asks is a gift."""


class KeyRing:
    """The keys of a service; read once, and again at ``reload``.

    Args:
        path: where they came from, for ``reload``; None if nowhere.
    """

    def __init__(self, keys: Sequence[Key], path: Path | None = None) -> None:
        self.path = path
        self._entries = _entries(keys)

    @classmethod
    def read(cls, path: Path) -> KeyRing:
        """Read a file of keys; says in the log if other users can read or change it.

        Raises:
            ConfigError: the file is missing, unreadable or wrong; names the entry.
        """
        return cls(key_file.read(path), path)

    @property
    def keys(self) -> list[Key]:
        """The entries, in the order of the file."""
        return [key for key, _ in self._entries]

    def match(self, key: str) -> Key | None:
        """The entry of a key, or None. It may have expired: ask ``Key.expired``.

        Takes the same time whichever entry fits, and whether one does: hashes are compared
        in constant time, and always with every entry.
        """
        if len(key) > MAX_KEY_CHARS:
            return None
        digest = digest_of(key)
        found = None
        for candidate, stored in self._entries:
            if hmac.compare_digest(digest, stored):
                found = candidate
        return found

    def reload(self) -> bool:
        """Read the file again; a bad one is logged and changes nothing. Never raises.

        Returns:
            whether the keys are now those of the file.
        """
        if self.path is None:
            return True
        try:
            entries = _entries(key_file.read(self.path))
        except MMFError as e:
            log.error("the API keys stay as they were: %s", e)
            return False
        self._entries = entries  # one assignment: a request sees the old ring or the new one
        log.info("%s: API keys read again: %d", self.path, len(entries))
        return True


def _entries(keys: Sequence[Key]) -> tuple[tuple[Key, bytes], ...]:
    return tuple((key, bytes.fromhex(key.sha256)) for key in keys)
