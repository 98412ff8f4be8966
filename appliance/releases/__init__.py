"""The releases on this box: staged, tried, switched to, and gone back from."""
