"""`Global.imports`: the user's own modules, run before a configuration is checked."""

from collections.abc import Iterable

from plsc import components
from plsc.config.source import Source
from plsc.errors import ConfigError

_PATH = ("Global", "imports")


def run_imports(source: Source, imports: Iterable[str], *, allowed: bool) -> list[str]:
    """Import what a configuration names, and `imports`; the tree then names all of it, files by absolute paths.

    Args:
        allowed: whether the configuration's own imports may run; else only those that an override sets.

    Returns:
        The names that were not allowed to run.

    Raises:
        ConfigError: something cannot be imported.
    """
    section = source.tree.get("Global") or {}
    named = section.get("imports") or [] if isinstance(section, dict) else None
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        return []  # a problem that the check tells with the others
    kept, refused = [], []
    for i, name in enumerate(named):
        origin = source.origin((*_PATH, i))
        if not (allowed or origin.override):
            kept.append(name)
            refused.append(name)
            continue
        try:
            kept.append(components.import_part(name, origin.file.parent if origin.file else None))
        except ConfigError as error:
            raise ConfigError(source.located((*_PATH, i), str(error))) from error
    given = [components.import_part(name) for name in imports]
    if kept or given:
        source.tree["Global"] = {**section, "imports": list(dict.fromkeys([*kept, *given]))}
    return [name for name in refused if name not in given]
