"""The wire format of the HTTP APIs: requests as they are read, answers as they are written."""
