"""Reading a config.json without overlooking a word of it: what we cannot honour is an error, not a slightly wrong network."""


def honoured(config: dict, defaults: dict, fixed: dict[str, tuple], free: set[str] = frozenset()) -> dict:
    """The config, completed by `defaults`. Keys with a leading underscore are notes.

    fixed: keys that may only hold one of the values named. free: keys whose value changes nothing here. Any other key is an
    option we do not have, and fine as long as it is off, None or False. Raises ValueError for what cannot be honoured.
    """
    for key, value in config.items():
        known = key in defaults or key in free or key.startswith("_")
        if value not in fixed[key] if key in fixed else not known and value not in (None, False):
            may = " or ".join(map(repr, fixed.get(key, ("no such option",))))
            raise ValueError(f"config.json asks for {key} = {value!r}: minidiff has {may}")
    return defaults | config
