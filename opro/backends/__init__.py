"""Our scorer as the backend of other optimisers: GEPA, DSPy, Optuna. Each needs its package."""
