"""The commands, one file each: what a user asks for, in terms of the rooms below."""
