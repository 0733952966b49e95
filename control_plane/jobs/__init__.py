"""The Celery application: builds, scheduler tick, presence sweep."""
