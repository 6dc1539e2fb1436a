"""The commands, by what they are for: make something, look at something, keep the stock of published models.

Each imports what it needs inside, so that `--help` answers at once.
"""
