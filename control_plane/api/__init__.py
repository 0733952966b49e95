"""The HTTP process: routes, schemas, authentication, problem+json errors."""
