"""Who may ask the service for what: keys and sessions, checks of where a request comes from, and limits."""
