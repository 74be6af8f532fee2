"""Loading of a base model's parts, strictly: what is missing or does not fit is an error, not initialised."""
