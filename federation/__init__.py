"""How many nodes train one adapter. The first release has no training yet; its rules will live here."""
