"""Tool calls: their forms, the grammars that force them, the parser that finds them."""
