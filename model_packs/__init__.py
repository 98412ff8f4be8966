"""Build side: recipes and the builder that turns published weights into model packs. Not shipped in the wheel."""
