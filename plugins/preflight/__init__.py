"""Everything about a config that can be found wrong before anything is built: names, arguments, references, values."""

from plugins.preflight.building import building_fault
from plugins.preflight.components import component_fault
from plugins.preflight.config import check_config, check_tracking

__all__ = ["building_fault", "check_config", "check_tracking", "component_fault"]
