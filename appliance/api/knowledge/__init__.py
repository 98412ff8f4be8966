"""Collections, documents and search; the box has no vector store yet."""
