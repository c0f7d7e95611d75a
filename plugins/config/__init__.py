"""Configuration: reading and overriding it, checking it before anything is built, telling what could not be built."""

from plugins.config.building import building_fault
from plugins.config.checking import check_config, check_tracking, check_workflow
from plugins.config.command import (
    COMPLETE,
    CommandLine,
    command_line,
    merged,
    refuse_unknown_options,
    tracking_settings,
)
from plugins.config.components import component_fault
from plugins.config.names import fitting, nodes, refuse_unknown, refuse_unknown_ids
from plugins.config.ranges import NotEmpty, Pair, Rate, Share, Triple
from plugins.config.signatures import Methods, argument_names, importable, locate, passes_on, refused_by, signature

__all__ = [
    "COMPLETE",
    "CommandLine",
    "Methods",
    "NotEmpty",
    "Pair",
    "Rate",
    "Share",
    "Triple",
    "argument_names",
    "building_fault",
    "check_config",
    "check_tracking",
    "check_workflow",
    "command_line",
    "component_fault",
    "fitting",
    "importable",
    "locate",
    "merged",
    "nodes",
    "passes_on",
    "refuse_unknown",
    "refuse_unknown_ids",
    "refuse_unknown_options",
    "refused_by",
    "signature",
    "tracking_settings",
]
