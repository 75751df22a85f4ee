"""The old name of jaxmerge.load_config, for config files."""

from jaxmerge.cli.config_files import load_config as load_config
