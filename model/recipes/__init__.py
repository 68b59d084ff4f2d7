"""Training recipes: experiment files (TOML) and their loader."""
