"""The settings of a process as an administrator may see them: by name, without what could be a secret."""

from collections.abc import Mapping
from enum import Enum
from urllib.parse import urlsplit

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from rayhook.deploy.settings import Settings
from rayhook.deploy.storage_settings import PREFIX
from rayhook.smart_app.dependencies import SettingView

_HIDDEN = "…"


def settings_view(settings: Settings) -> tuple[SettingView, ...]:
    """Return every setting, the set ones too; of a URL only where it leads to, never who goes there."""
    return tuple(
        SettingView(
            name="DATABASE_URL" if name == "database_url" else PREFIX + name.upper(),
            value=_database(settings) if name == "database_url" else _shown(getattr(settings, name)),
            is_default=name not in settings.model_fields_set,
        )
        for name in sorted(type(settings).model_fields)
    )


def _database(settings: Settings) -> str:
    """A password may stand in the user part, and in the query too."""
    try:
        url = make_url(settings.resolved_database_url)
    except ArgumentError:
        return _HIDDEN
    return URL.create(url.drivername, host=url.host, port=url.port, database=url.database).render_as_string()


def _shown(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, Mapping):
        return ", ".join(f"{_shown(key)}: {_shown(one)}" for key, one in value.items())
    if isinstance(value, tuple | list | frozenset):
        return ", ".join(map(_shown, value))
    text = str(value)
    return _without_credentials(text) if "://" in text or "@" in text else text


def _without_credentials(text: str) -> str:
    parts = urlsplit(text)
    if not parts.netloc:
        return _HIDDEN
    host = parts.netloc.rpartition("@")[2]
    query = f"?{_HIDDEN}" if parts.query else ""
    return f"{parts.scheme}://{host}{parts.path}{query}"
