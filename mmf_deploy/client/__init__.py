"""A client of mmf-serve, blocking and asynchronous; docs/clients.md."""

from .asynchronous import AsyncClient
from .blocking import Client
from .events import StreamedImage
from .replies import Encoded, Images

__all__ = ["AsyncClient", "Client", "Encoded", "Images", "StreamedImage"]
