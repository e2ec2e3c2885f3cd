"""A stored run or sweep as a page, a table, event files."""
