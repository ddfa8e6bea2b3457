"""Expressions that people write: rules over scores, filters over the columns of a table. Read without `eval`."""
