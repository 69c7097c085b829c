"""What handlers may use besides their base class."""
