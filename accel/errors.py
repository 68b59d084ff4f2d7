"""Errors that a user can act on. Each message is one line: file, field, what was expected, what was found."""

from __future__ import annotations


class M3vitError(Exception):
    """Base of every error this project raises on purpose; the command line prints it without a traceback."""


class ConfigError(M3vitError):
    """A configuration value is unknown, duplicated, out of range or does not fit the hardware."""


class BundleError(M3vitError):
    """A bundle is incomplete, damaged or belongs to another configuration."""


class CheckpointError(M3vitError):
    """A checkpoint cannot be read or does not match the network."""


class ExportError(M3vitError):
    """A trained model cannot be expressed in the numeric contract."""


class DataError(M3vitError):
    """An image or data set has the wrong type, size or content."""


class ProgramError(M3vitError):
    """A command or program is malformed or does not fit the engine."""


class DeviceError(M3vitError):
    """The engine or its driver reported a failure."""


class DeviceTimeout(DeviceError):
    """The engine did not finish within the time allowed."""
