"""Token ids kept on disk: datastores of the user's texts, and earlier answers."""
