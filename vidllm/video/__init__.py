"""From a file to pictures with their times; nothing in this room knows about models."""
