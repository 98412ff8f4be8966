"""Build side: freezes the program into a tree of its own. Nothing of this is shipped."""
