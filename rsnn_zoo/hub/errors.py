"""What finding an entry can raise; without the client of the Hub, which takes its time to import."""


class NotPublishedError(LookupError):
    """A name of the grid that has no published weights."""


class HubError(OSError):
    """The Hub, or the download cache, could not give what was asked for; says what to do."""
