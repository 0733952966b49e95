"""The rules, pure: devices, selectors, blueprints, models, rollouts, gates."""
