"""What ``appliance smoke`` runs: every capability once, on something small, in the tree that it is part of."""
