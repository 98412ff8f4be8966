"""Worker processes: what may crash or meets hostile files runs apart, confined, and is started again."""
