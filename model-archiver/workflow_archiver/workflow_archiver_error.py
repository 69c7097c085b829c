class WorkflowArchiverError(Exception):
    """What was asked for cannot be archived; the text is for the person who asked."""
