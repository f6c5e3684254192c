"""Images that were stored here, in the folder of this installation."""

from typing import Final

from rayhook.auth.keys import Keyring
from rayhook.deploy.database import Database
from rayhook.deploy.settings import Settings
from rayhook.inference.received import ReceivedImages
from rayhook.inference.sealed_spool import SealedSpool

FOLDER: Final = "received"


def received_images(settings: Settings, database: Database, keyring: Keyring) -> ReceivedImages:
    """Return them. A process that has another folder finds none of the files, and asks the PACS for them."""
    spool = SealedSpool(settings.data_dir / FOLDER, keyring, settings.spool_bytes)
    return ReceivedImages(spool, database.sessions, keyring)
