"""Configuration: reading and overriding it, checking it before anything is built, telling what could not be built."""
