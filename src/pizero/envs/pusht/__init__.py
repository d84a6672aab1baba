"""PushT and its demonstrator."""
