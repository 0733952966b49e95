"""Pages and fragments for people: templates, charts, live stream."""
