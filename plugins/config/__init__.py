"""Configuration: reading and overriding it, checking it before anything is built, telling what could not be built."""

from plugins.config.building import settings_behind

__all__ = ["settings_behind"]
