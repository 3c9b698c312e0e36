"""What is typed, and the settings that come of it."""
