"""From a URL or a path to an unpacked, validated model archive on disk."""
