"""Who may do what: API keys, access tokens, roles, roots, and each caller's fair share."""
