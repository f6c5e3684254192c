"""The database handle that every package takes."""

from collections.abc import Callable

from sqlmodel import Session

Sessions = Callable[[], Session]
