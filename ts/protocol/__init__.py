"""The messages that frontend and worker speak.

Standard library only, because both sides import it.
"""
