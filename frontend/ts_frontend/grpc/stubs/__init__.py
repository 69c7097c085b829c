"""Generated from proto/ by scripts/generate-stubs; not edited by hand."""
