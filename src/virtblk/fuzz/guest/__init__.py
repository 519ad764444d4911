"""The guest that lies, compiled: it has only ring memory, and makes, offers and judges requests in batches."""
