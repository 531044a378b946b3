"""The directory: who is a member, who serves which blocks."""
