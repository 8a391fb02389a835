"""One runtime per file, imported when it is used."""
