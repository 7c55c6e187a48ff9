"""A monitor in other people's training loops.

Each module is imported by its name, since it needs the package that it is for:

- :mod:`flatmin.integrations.lightning`, for Lightning's ``Trainer``,
- :mod:`flatmin.integrations.transformers`, for the ``Trainer`` of Hugging Face,
- :mod:`flatmin.integrations.skorch`, for skorch nets and flatmin's estimators.

A loop of one's own needs none of them: call :class:`flatmin.FlatnessMonitor`.
"""

__all__: list[str] = []
